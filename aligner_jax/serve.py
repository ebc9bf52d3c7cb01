"""Serves a base and its adapters over HTTP with OpenAI's API.

python -m aligner_jax.serve --base=PATH --adapters=DIR_OR_BANK
"""

import os
import sys
from pathlib import Path
from typing import Any, cast

import jax
from absl import flags

from aligner_jax.decoding import server_options
from aligner_jax.decoding.engine_options import rows_for
from aligner_jax.errors import InputError
from aligner_jax.files.extras import missing, pip_line
from aligner_jax.model.logical import num_parts
from aligner_jax.model.quantized import KINDS
from aligner_jax.peft.artifact import RecordedBase
from aligner_jax.runtime import command, distributed, platform, sharding
from aligner_jax.runtime.config import BaseConfig, MeshConfig
from aligner_jax.weights.on_mesh import load_base_over

BASE = flags.DEFINE_string(
    "base", None, "The base: a folder of Hugging Face, Meta or Orbax, a .gguf file or a hub name."
)
ADAPTERS = flags.DEFINE_string("adapters", None, "A bank, or a folder in which NAME.safetensors is the model NAME.")
NAME = flags.DEFINE_string("name", None, "Name of the base as a model; by default the last part of its path.")
HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen on; 0.0.0.0: all of this machine.")
PORT = flags.DEFINE_integer("port", 8000, "Port to listen on; 0: a free one.", lower_bound=0, upper_bound=65535)
API_KEY_FILE = flags.DEFINE_string("api_key_file", None, "File of keys, one a line, of which clients must have one.")
DTYPE = flags.DEFINE_enum("dtype", "auto", platform.DTYPES, "Dtype of the base; auto: what the device does best.")
QUANTIZATION = flags.DEFINE_enum("quantization", "none", ["none", *KINDS], "Quantization of the base's projections.")
GROUP_SIZE = flags.DEFINE_integer("group_size", 32, "Numbers that share a scale in int4.", lower_bound=2)
DATA = flags.DEFINE_integer(
    "data", 1, "Replicas of the base, each with its own rows; -1 (with --fsdp=1): as many as there are devices.", -1
)
FSDP = flags.DEFINE_integer("fsdp", -1, "Devices that split a replica's weights for storage, and its rows.", -1)
TENSOR = flags.DEFINE_integer("tensor", 1, "Devices that split heads, MLP and vocabulary.", lower_bound=-1)
ROWS = flags.DEFINE_integer(
    "rows", None, "Choices that are decoded at once: by default 16, on a CPU 8. The mesh's parts round it up.", 1
)
TOKENS = flags.DEFINE_integer("tokens", 2048, "Tokens of a prompt and its answer together, at most.", lower_bound=2)
PLACES = flags.DEFINE_integer("places", 64, "Adapters that are kept on the device.", lower_bound=4)
TOKENS_PER_CALL = flags.DEFINE_integer(
    "tokens_per_call", server_options.TOKENS_PER_CALL, "Tokens decoded per call when no request waits.", lower_bound=1
)
TOP_LOGPROBS = flags.DEFINE_integer(
    "top_logprobs", server_options.ALTERNATIVES, "Alternatives of log-probabilities at most.", lower_bound=1
)
PREFIX_TOKENS = flags.DEFINE_integer(
    "prefix_tokens",
    server_options.PREFIX_TOKENS,
    "Room for tokens of adapters in a row, at least; more if adapters need it.",
    lower_bound=0,
)
RANK = flags.DEFINE_integer("rank", 0, "Room for ranks of LoRAs of q and v in a row, at least.", lower_bound=0)
WARM_UP = flags.DEFINE_bool("warm_up", True, "Compile all programs before /ready answers.")
OUTPUT_TOKENS = flags.DEFINE_integer("max_output_tokens", 2**20, "New tokens of a choice at most.", lower_bound=1)
PROMPT_TOKENS = flags.DEFINE_integer("max_prompt_tokens", 2**20, "Tokens of a prompt at most.", lower_bound=1)
REQUESTS = flags.DEFINE_integer("max_requests", 1024, "Requests that are answered at once.", lower_bound=1)
QUEUE = flags.DEFINE_integer("max_queue", 256, "Choices that wait for a row.", lower_bound=0)
QUEUE_SECONDS = flags.DEFINE_float("queue_seconds", 60, "Time that a request waits for its first token.", 0.001)
BODY_BYTES = flags.DEFINE_integer("max_body_bytes", 2**20, "Size of a request's body at most.", lower_bound=1)
ADAPTER_BYTES = flags.DEFINE_integer("max_adapter_bytes", 2**26, "Size of an uploaded adapter at most.", lower_bound=1)
GRACE_SECONDS = flags.DEFINE_float("grace_seconds", 30, "Time that requests have to end after SIGTERM.", 1)


def main() -> None:
    if names := missing("starlette", "uvicorn", "h11", "prometheus_client"):
        raise InputError(f"the server needs the packages {', '.join(names)}: {pip_line('serve')}")
    # Imported here, since they need those packages.
    from aligner_jax.serving import gate, server, start
    from aligner_jax.serving.limits import Limits

    if not BASE.value or not ADAPTERS.value:
        raise InputError("give a base and adapters: --base=PATH --adapters=DIR_OR_BANK")
    keys = gate.read_keys(API_KEY_FILE.value) if API_KEY_FILE.value else ()
    limits = Limits(
        output_tokens=_int(OUTPUT_TOKENS), prompt_tokens=_int(PROMPT_TOKENS), requests=_int(REQUESTS),
        queue=_int(QUEUE), queue_seconds=cast(float, QUEUE_SECONDS.value), body_bytes=_int(BODY_BYTES),
        adapter_bytes=_int(ADAPTER_BYTES), grace_seconds=cast(float, GRACE_SECONDS.value),
    )  # fmt: skip
    if not distributed.is_alone():
        raise InputError(
            f"a server runs on the devices of one host, and {jax.process_count()} processes were joined; start it "
            "alone on a host, and another one on each further host (docs/serving.md says how)"
        )
    mesh_config = MeshConfig(data=_int(DATA), fsdp=_int(FSDP), tensor=_int(TENSOR))
    mesh, rules = sharding.mesh_of(mesh_config), sharding.rules_of(mesh_config)
    # Bound first, so that a port that is taken is reported at once.
    listener = server.listen(HOST.value or "", _int(PORT))
    base_config = BaseConfig(
        path=BASE.value, dtype=cast(Any, DTYPE.value), quantization=cast(Any, QUANTIZATION.value),
        group_size=_int(GROUP_SIZE),
    )  # fmt: skip
    name = NAME.value or Path(os.path.abspath(BASE.value)).name
    with sharding.use(mesh, rules):
        base = load_base_over(mesh, rules, base_config)
        named = RecordedBase(base.config, base.fingerprint)
        adapters = start.open_adapters(ADAPTERS.value, named)
        kinds = adapters.kinds()
        wanted = ROWS.value or server_options.rows_on(mesh.devices.flat[0].platform)
        rows = rows_for(wanted, base.params.embed_vd.dtype, num_parts("batch"))
        options = server_options.server_options(
            base.config, rows=rows, slots=min(_int(TOKENS), base.config.context_length),
            capacity=start.room_for(adapters, base, _int(PREFIX_TOKENS), _int(RANK)), places=_int(PLACES),
            tokens_per_call=_int(TOKENS_PER_CALL), alternatives=_int(TOP_LOGPROBS),
        )  # fmt: skip
        service = start.make_service(base, adapters, options, name=name, limits=limits, keys=keys, named=named)
    service.engine.start(kinds if WARM_UP.value else None)
    address, port, *_ = listener.getsockname()
    shown = f"[{address}]" if ":" in address else address
    server.serve(
        server.Server(service), listener, lambda: print(f"{name} at http://{shown}:{port}/v1", file=sys.stderr)
    )
    service.engine.stop()


def _int(flag: flags.FlagHolder[int | None]) -> int:
    return cast(int, flag.value)


if __name__ == "__main__":
    command.run(main)

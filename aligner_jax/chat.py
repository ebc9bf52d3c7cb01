"""Chats with a base and its adapters, in a terminal or line by line.

python -m aligner_jax.chat --base=PATH --adapter=runs/quickstart/adapter.safetensors
python -m aligner_jax.chat --url=http://127.0.0.1:8000/v1 --model=NAME
"""

import sys
from pathlib import Path
from typing import Any, cast

from absl import flags

from aligner_jax.chatting.endpoint import EndpointModel, EndpointOptions
from aligner_jax.chatting.local import LocalModel, LocalOptions
from aligner_jax.chatting.mix import Mix
from aligner_jax.chatting.model import ChatModel
from aligner_jax.chatting.reading import history_file, lines_of_stdin, lines_of_terminal
from aligner_jax.chatting.screen import PlainScreen, TerminalScreen
from aligner_jax.chatting.session import COMMANDS, Session
from aligner_jax.data.templates import TEMPLATES
from aligner_jax.decoding.choose import Sampling
from aligner_jax.errors import InputError
from aligner_jax.model.quantized import KINDS
from aligner_jax.runtime import command, platform
from aligner_jax.runtime.openai_client import check_url, read_key
from aligner_jax.weights.base import load_base

BASE = flags.DEFINE_string(
    "base", None, "The base: a folder of Hugging Face, Meta or Orbax, a .gguf file or a hub name."
)
ADAPTER = flags.DEFINE_multi_string(
    "adapter",
    [],
    "An adapter as generate takes it, or with --url the name of a model; may be given several times. The first one "
    "answers, /adapter and /sum choose others.",
)
URL = flags.DEFINE_string(
    "url", None, "An OpenAI-compatible server, instead of --base; up to the version, as http://127.0.0.1:8000/v1."
)
MODEL = flags.DEFINE_string("model", None, "Name of the base at the server.")
API_KEY_FILE = flags.DEFINE_string("api_key_file", None, "File that holds the server's API key.")
TIMEOUT = flags.DEFINE_float("timeout", 120.0, "Seconds to wait for the server's next piece.", lower_bound=0.1)
TEMPLATE = flags.DEFINE_enum(
    "template", "auto", ["auto", "none", *TEMPLATES],
    "Template of the prompts. auto: the one that the adapters record, else the chat template of the base.",
)  # fmt: skip
SYSTEM = flags.DEFINE_string("system", None, "System prompt, instead of the recorded one.")
CONTEXT = flags.DEFINE_integer(
    "context", None, "Tokens of the conversation at most; default: 4096, or those of the base.", lower_bound=2
)
MAX_NEW_TOKENS = flags.DEFINE_integer(
    "max_new_tokens", None, "Tokens of an answer at most; default: 512, or half of the context.", lower_bound=1
)
TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "0 is greedy.", lower_bound=0.0)
TOP_K = flags.DEFINE_integer("top_k", 0, "Sample among the k most probable tokens; 0: all.", lower_bound=0)
TOP_P = flags.DEFINE_float("top_p", 1.0, "Sample among the fewest tokens with this much probability.")
SEED = flags.DEFINE_integer("seed", 0, "The same seed gives the same answers to the same questions.", lower_bound=0)
DTYPE = flags.DEFINE_enum("dtype", "auto", platform.DTYPES, "Dtype of the base; auto: what the device does best.")
QUANTIZATION = flags.DEFINE_enum("quantization", "none", ["none", *KINDS], "Quantization of the base's projections.")
GROUP_SIZE = flags.DEFINE_integer("group_size", 32, "Numbers that share a scale in int4.", lower_bound=2)
HISTORY = flags.DEFINE_string(
    "history", None, "File of earlier questions, for the arrow keys; default: one in ~/.local/state. '' keeps none."
)


def main() -> None:
    if bool(BASE.value) == bool(URL.value):
        raise InputError("give a base or a server: --base=PATH, or --url=http://… --model=NAME")
    sampling = Sampling(cast(float, TEMPERATURE.value), cast(int, TOP_K.value), cast(float, TOP_P.value))
    model = _at_server(sampling) if URL.value else _here(sampling)
    names = [model.find(adapter) for adapter in ADAPTER.value]
    mix = Mix(((names[0], 1.0),)) if names else Mix()
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    screen = TerminalScreen() if is_terminal else PlainScreen()
    session = Session(model, screen, mix=mix, system=SYSTEM.value)
    lines = lines_of_stdin()
    if is_terminal:
        screen.say(f"chat with {URL.value or BASE.value}; /help lists the commands")
        lines = lines_of_terminal(
            lambda: f"{session.mix}> ", lambda: [f"/{name}" for name in COMMANDS], _history_file()
        )
    for line in lines:
        if not session.take(line):
            break


def _here(sampling: Sampling) -> ChatModel:
    for flag in (MODEL, API_KEY_FILE):
        if flag.value is not None:
            raise InputError(f"--{flag.name} is of --url, and the base is here")
    dtype = platform.compute_dtype(cast(Any, DTYPE.value))
    base = load_base(
        cast(str, BASE.value), dtype, quantization=QUANTIZATION.value, group_size=cast(int, GROUP_SIZE.value)
    )
    context = CONTEXT.value or min(4096, base.config.context_length)
    options = LocalOptions(
        template=cast(str, TEMPLATE.value), context=context, max_new_tokens=MAX_NEW_TOKENS.value or _half(context),
        sampling=sampling, seed=cast(int, SEED.value),
    )  # fmt: skip
    return LocalModel(base, options)


def _half(context: int) -> int:
    return max(1, min(512, context // 2))


def _at_server(sampling: Sampling) -> ChatModel:
    url = cast(str, URL.value)
    check_url(url, "--url", "the file that --api_key_file names")
    if not MODEL.value:
        raise InputError("give the name of the base at the server: --model=NAME")
    fields = {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": cast(int, SEED.value)}
    # Not of OpenAI's API, though many servers take it.
    fields |= {"top_k": sampling.top_k} if sampling.top_k else {}
    return EndpointModel(
        EndpointOptions(
            url=url, model=MODEL.value, key=read_key(API_KEY_FILE.value), timeout=cast(float, TIMEOUT.value),
            max_new_tokens=MAX_NEW_TOKENS.value or 512, sampling=fields,
        )
    )  # fmt: skip


def _history_file() -> Path | None:
    if HISTORY.value is None:
        return history_file()
    return Path(HISTORY.value) if HISTORY.value else None


if __name__ == "__main__":
    command.run(main)

"""Compiles a training step for a GPU with XLA's GPU compiler; no GPU is needed.

    pip install "jax[cuda12]"    # of the release of JAX that is installed
    python -m scripts.bench.gpu_compile --card=h100 configs/llama7b_alpaca.py data.batch_size=8 remat=dots

Prints one JSON object: seconds to lower and to compile, bytes of the arguments and of temporary values, the peak, and
how often each custom call occurs. Triton kernels are compiled to machine code. cuDNN builds its graphs on the card, so
their workspaces are not in the peak. Without a card XLA measures no matrix products, and takes default tilings.
"""

import argparse
import collections
import dataclasses
import json
import re
import time
from typing import Any, cast

import jax
from jax.experimental import topologies

from aligner_jax.compile import planned_model
from aligner_jax.runtime import sharding
from aligner_jax.runtime.command import load_config
from aligner_jax.runtime.config import TrainConfig, parse_config
from aligner_jax.tasks.first_adapter import first_adapter_shapes, method_choice
from aligner_jax.tasks.program import abstract_arguments, make_program


@dataclasses.dataclass(frozen=True)
class Card:
    """A card as XLA's compiler needs it: NVIDIA's data sheets, and the limits of the compute capability.

    Attributes:
      kind: `jax.Device.device_kind`.
      bandwidth: in GB/s.
      l2_mib: in MiB.
      shared_kib: shared memory of a multiprocessor, in KiB.
      threads, lanes: resident threads and float32 lanes of a multiprocessor.
      clock: in GHz.
    """

    kind: str
    capability: tuple[int, int]
    multiprocessors: int
    memory_bytes: int
    bandwidth: int
    l2_mib: int
    shared_kib: int
    threads: int
    lanes: int
    clock: float


CARDS = {
    "h100": Card("NVIDIA H100 80GB HBM3", (9, 0), 132, 84_942_979_072, 3_352, 50, 228, 2048, 128, 1.98),
    "a100": Card("NVIDIA A100-SXM4-80GB", (8, 0), 108, 85_094_834_176, 2_039, 40, 164, 2048, 64, 1.41),
    "l4": Card("NVIDIA L4", (8, 9), 58, 23_580_639_232, 300, 48, 100, 1536, 128, 2.04),
    "t4": Card("Tesla T4", (7, 5), 40, 15_828_320_256, 320, 4, 64, 1024, 64, 1.59),
}


def target(card: Card) -> str:
    """Returns the card as a `GpuTargetConfigProto` of XLA, in text format."""
    major, minor = card.capability
    features = "feature_extension: ACCELERATED_FEATURES" if major >= 9 else ""
    # Cards of capability 8.0 and later reserve 1 KiB.
    block_kib = card.shared_kib - (1 if major >= 8 else 0)
    return f"""
        platform_name: "CUDA"
        device_description_str: "{card.kind}"
        dnn_version_info {{ major: 9 minor: 10 }}
        gpu_device_info {{
          name: "{card.kind}"
          device_vendor: "NVIDIA Corporation"
          cuda_compute_capability {{ major: {major} minor: {minor} {features} }}
          core_count: {card.multiprocessors} fpus_per_core: {card.lanes} clock_rate_ghz: {card.clock}
          device_memory_size: {card.memory_bytes} memory_bandwidth: {card.bandwidth * 10**9}
          l2_cache_size: {card.l2_mib << 20}
          shared_memory_per_core: {card.shared_kib << 10} shared_memory_per_block_optin: {block_kib << 10}
          shared_memory_per_block: 49152
          threads_per_core_limit: {card.threads} threads_per_block_limit: 1024 threads_per_warp: 32
          registers_per_core_limit: 65536 registers_per_block_limit: 65536
          thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
          block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
          device_address_bits: 64
          driver_version: "12.9.0" runtime_version: "12.9.0" compile_time_toolkit_version: "12.9.0"
          dnn_version: "9.10.0"
        }}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("config", help="config file of a training run; its mesh is replaced by one card")
    parser.add_argument("overrides", nargs="*", help="fields to set, such as data.batch_size=8")
    parser.add_argument("--card", choices=CARDS, default="h100")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16", help="of the base")
    arguments = parser.parse_args()
    overrides = [(name, value) for name, _, value in (text.partition("=") for text in arguments.overrides)]
    jax.config.update("jax_platforms", "cpu")
    raw = load_config(arguments.config, overrides, choices=[method_choice()])
    raw.mesh = {"fsdp": 1}
    print(json.dumps(compiled_step(parse_config(raw), CARDS[arguments.card], arguments.dtype)))


def compiled_step(config: TrainConfig, card: Card, dtype: str) -> dict[str, Any]:
    """Compiles the training step of a config for one card; returns its costs by name."""
    try:
        topology = topologies.get_topology_desc("", platform="cuda", target_config=target(card), topology="1x1x1")
    except NotImplementedError:
        raise SystemExit(f'the GPU compiler is not installed: pip install "jax[cuda12]=={jax.__version__}"') from None
    model, mesh = planned_model(config.base), sharding.mesh_of(config.mesh, topology.devices)
    program = make_program(config, model, first_adapter_shapes(config, model), mesh)
    began = time.monotonic()
    with program.use():
        arguments = abstract_arguments(config, model, program, dtype)
        lowered = cast(jax.stages.Wrapped, program.step).lower(*arguments)
    at = time.monotonic()
    compiled = lowered.compile()
    memory, text = compiled.memory_analysis(), compiled.as_text()
    assert memory is not None
    assert text is not None
    return {
        "card": card.kind,
        "jax": jax.__version__,
        "lower_seconds": round(at - began, 1),
        "compile_seconds": round(time.monotonic() - at, 1),
        "arguments_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "peak_bytes": memory.peak_memory_in_bytes,
        "custom_calls": collections.Counter(re.findall(r'custom_call_target="([^"]*)"', text)),
    }


if __name__ == "__main__":
    main()

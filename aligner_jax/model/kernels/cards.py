"""This machine's NVIDIA cards, and the compute capability that kernels need."""

from typing import Any

import jax
from jax.experimental.pallas import triton as plgpu

from aligner_jax.model.kernels.kernel import Unsupported

LEAST_CAPABILITY = 80
"""XLA compiles Triton's programs and cuDNN's attention for sm_80 (A100) and later, hence not for T4 and V100."""


def cards() -> list[Any]:
    """Returns one local device of each kind of NVIDIA card; empty on a machine without one."""
    try:
        devices = jax.local_devices(backend="cuda")
    except RuntimeError:
        return []
    return list({device.device_kind: device for device in devices}.values())


def target_capability() -> int | None:
    """Returns ten times the compute capability of the GPU that programs are lowered for; None if JAX knows none.

    The GPU is the abstract device of the mesh in context, or else the default device.
    """
    try:
        return plgpu.get_gpu_info().compute_capability
    except ValueError:
        return None


def check_capability(kernel: str) -> None:
    """Raises `Unsupported` if the GPU that programs are lowered for is known and too old for a kernel.

    Args:
      kernel: subject of the sentence.
    """
    target = target_capability()
    # JAX does not know the names of cards before T4, nor that of the card if another device is the default.
    known = [int(card.compute_capability.replace(".", "")) for card in cards()] if target is None else [target]
    if known and min(known) < LEAST_CAPABILITY:
        raise Unsupported(
            f"{kernel} takes GPUs of compute capability {LEAST_CAPABILITY / 10} and up, not {min(known) / 10}"
        )

"""Peak figures of TPU chips."""

import dataclasses
from collections.abc import Iterable


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peak figures of one JAX device.

    Attributes:
      flops_per_second: bfloat16 FLOPs per second.
      hbm_bytes_per_second: HBM bandwidth.
      hbm_bytes: size of HBM.
      network_bytes_per_second: bandwidth of receiving from devices of the same slice, over all links together.
    """

    name: str
    flops_per_second: float
    hbm_bytes_per_second: float
    hbm_bytes: int
    network_bytes_per_second: float


# Figures per chip in TFLOP/s, GB/s and GiB from https://docs.cloud.google.com/tpu/docs/ v4, v5e and v6e, and for v5p
# from the table at tpu7x. JAX's own table (jax/_src/tpu_info.py) agrees within 3 %, except for v5p's bandwidth,
# 2460 GB/s. Links between chips are published in Gbit/s per chip: 2400, 1600, 4800, 3200, 9600.
# On v4 and v5p the two cores of a chip form one device. On tpu7x a core is a device, with half of the chip's figures.
_V4 = Chip("v4", 275e12, 1200e9, 32 << 30, 300e9)
_V5E = Chip("v5e", 197e12, 819e9, 16 << 30, 200e9)
_V5P = Chip("v5p", 459e12, 2765e9, 95 << 30, 600e9)
_V6E = Chip("v6e", 918e12, 1638e9, 32 << 30, 400e9)
_TPU7X = Chip("tpu7x", 2307e12 / 2, 7380e9 / 2, (192 << 30) // 2, 1200e9 / 2)

CHIPS: dict[str, Chip] = {
    "TPU v4": _V4,
    "TPU v5 lite": _V5E,
    "TPU v5e": _V5E,
    "TPU v5": _V5P,
    "TPU v5p": _V5P,
    "TPU v6 lite": _V6E,
    "TPU v6e": _V6E,
    "TPU7x": _TPU7X,
}
"""Known chips by `jax.Device.device_kind`."""


def peak_flops(device_kinds: Iterable[str]) -> float | None:
    """Returns the total peak bfloat16 FLOPs per second of devices, given their kinds; None if a kind is unknown."""
    chips = [CHIPS.get(kind) for kind in device_kinds]
    known = [chip.flops_per_second for chip in chips if chip is not None]
    return sum(known) if len(known) == len(chips) else None

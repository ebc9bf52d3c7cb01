"""Peak figures of TPU chips and NVIDIA GPUs."""

import dataclasses
from collections.abc import Iterable


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peak figures of one JAX device.

    Attributes:
      flops_per_second: dense bfloat16 FLOPs per second; float16 on GPUs without bfloat16 (T4, V100).
      hbm_bytes_per_second: bandwidth of the device's memory.
      hbm_bytes: size of the device's memory. On a GPU, driver and error correction leave a few percent less.
      network_bytes_per_second: bandwidth of receiving from devices of the same slice or host, over all links together:
        NVLink, or PCI Express on cards without it. Bridged PCI Express cards have it to the cards of the bridge alone.
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

# Sources: NVIDIA's datasheets "H100 Tensor Core GPU", "H200 Tensor Core GPU", "A100 80GB" and "A100 40GB", "L4", "T4",
# "V100". FLOPs are half of the published ones where these are "with sparsity" (H100, H200, L4). Links are published as
# the sum of both directions, of which half receives: NVLink 900 (H100 SXM, H200), 600 (A100, and the bridges of H100
# PCIe and NVL) and 300 GB/s (V100 SXM2); PCI Express 64 (L4) and 32 GB/s (T4, V100 PCIe).
_H100_SXM = Chip("H100 SXM", 989e12, 3350e9, 80 << 30, 450e9)
_H100_PCIE = Chip("H100 PCIe", 756e12, 2000e9, 80 << 30, 300e9)
_H100_NVL = Chip("H100 NVL", 835.5e12, 3900e9, 94 << 30, 300e9)
_H200_SXM = Chip("H200 SXM", 989e12, 4800e9, 141 << 30, 450e9)
_H200_NVL = Chip("H200 NVL", 835.5e12, 4800e9, 141 << 30, 450e9)
_A100_40GB = Chip("A100 40GB", 312e12, 1555e9, 40 << 30, 300e9)
_A100_80GB_SXM = Chip("A100 80GB SXM", 312e12, 2039e9, 80 << 30, 300e9)
_A100_80GB_PCIE = Chip("A100 80GB PCIe", 312e12, 1935e9, 80 << 30, 300e9)
_L4 = Chip("L4", 121e12, 300e9, 24 << 30, 32e9)
_T4 = Chip("T4", 65e12, 320e9, 16 << 30, 16e9)
_V100_SXM2_16GB = Chip("V100 SXM2 16GB", 125e12, 900e9, 16 << 30, 150e9)
_V100_SXM2_32GB = Chip("V100 SXM2 32GB", 125e12, 900e9, 32 << 30, 150e9)
_V100_PCIE_16GB = Chip("V100 PCIe 16GB", 112e12, 900e9, 16 << 30, 16e9)
_V100_PCIE_32GB = Chip("V100 PCIe 32GB", 112e12, 900e9, 32 << 30, 16e9)

TPUS: dict[str, Chip] = {
    "TPU v4": _V4,
    "TPU v5 lite": _V5E,
    "TPU v5e": _V5E,
    "TPU v5": _V5P,
    "TPU v5p": _V5P,
    "TPU v6 lite": _V6E,
    "TPU v6e": _V6E,
    "TPU7x": _TPU7X,
}
"""Known TPU chips by `jax.Device.device_kind`."""

GPUS: dict[str, Chip] = {
    "NVIDIA H100 80GB HBM3": _H100_SXM,
    "NVIDIA H100 PCIe": _H100_PCIE,
    "NVIDIA H100 NVL": _H100_NVL,
    "NVIDIA H200": _H200_SXM,
    "NVIDIA H200 NVL": _H200_NVL,
    "NVIDIA A100-SXM4-40GB": _A100_40GB,
    "NVIDIA A100-PCIE-40GB": _A100_40GB,
    "NVIDIA A100-SXM4-80GB": _A100_80GB_SXM,
    "NVIDIA A100 80GB PCIe": _A100_80GB_PCIE,
    "NVIDIA L4": _L4,
    "Tesla T4": _T4,
    "Tesla V100-SXM2-16GB": _V100_SXM2_16GB,
    "Tesla V100-SXM2-32GB": _V100_SXM2_32GB,
    "Tesla V100-PCIE-16GB": _V100_PCIE_16GB,
    "Tesla V100-PCIE-32GB": _V100_PCIE_32GB,
}
"""Known GPUs by `jax.Device.device_kind`, which is CUDA's name of the card."""

CHIPS: dict[str, Chip] = TPUS | GPUS
"""All known chips by `jax.Device.device_kind`."""


def peak_flops(device_kinds: Iterable[str]) -> float | None:
    """Returns the total peak FLOPs per second of devices, given their kinds; None if a kind is unknown.

    The peak is that of bfloat16, or of float16 on GPUs without bfloat16, whatever dtype the program computes in.
    """
    chips = [CHIPS.get(kind) for kind in device_kinds]
    known = [chip.flops_per_second for chip in chips if chip is not None]
    return sum(known) if len(known) == len(chips) else None

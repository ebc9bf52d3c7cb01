"""Peak figures of GPUs, against those that follow from their clocks, cores and memories."""

import pytest

from aligner_jax.runtime.chips import CHIPS, GPUS, peak_flops

# Multiprocessors, dense FLOPs per clock of the tensor cores of one, and their clock in GHz; bits of the memory's bus,
# and Gbit/s of one. NVIDIA's whitepapers of Volta, Turing, Ampere, Ada and Hopper.
ARCHITECTURE = {
    "NVIDIA H100 80GB HBM3": (132, 4096, 1.83, 5120, 5.23),
    "NVIDIA H100 PCIe": (114, 4096, 1.62, 5120, 3.19),
    "NVIDIA H100 NVL": (132, 4096, 1.545, 6016, 5.22),
    "NVIDIA H200": (132, 4096, 1.83, 6144, 6.25),
    "NVIDIA H200 NVL": (132, 4096, 1.545, 6144, 6.25),
    "NVIDIA A100-SXM4-40GB": (108, 2048, 1.41, 5120, 2.43),
    "NVIDIA A100-PCIE-40GB": (108, 2048, 1.41, 5120, 2.43),
    "NVIDIA A100-SXM4-80GB": (108, 2048, 1.41, 5120, 3.19),
    "NVIDIA A100 80GB PCIe": (108, 2048, 1.41, 5120, 3.02),
    "NVIDIA L4": (58, 1024, 2.04, 192, 12.5),
    "Tesla T4": (40, 1024, 1.59, 256, 10.0),
    "Tesla V100-SXM2-16GB": (80, 1024, 1.53, 4096, 1.75),
    "Tesla V100-SXM2-32GB": (80, 1024, 1.53, 4096, 1.75),
    "Tesla V100-PCIE-16GB": (80, 1024, 1.37, 4096, 1.75),
    "Tesla V100-PCIE-32GB": (80, 1024, 1.37, 4096, 1.75),
}


@pytest.mark.parametrize("kind", GPUS)
def test_figures_follow_from_the_architecture(kind: str):
    cores, flops_per_clock, clock, bits, bit_rate = ARCHITECTURE[kind]
    assert GPUS[kind].flops_per_second == pytest.approx(cores * flops_per_clock * clock * 1e9, rel=0.005)
    assert GPUS[kind].hbm_bytes_per_second == pytest.approx(bits * bit_rate * 1e9 / 8, rel=0.025)


def test_a_kind_that_states_its_memory_has_it():
    stated = {kind: size for kind in GPUS for size in (16, 32, 40, 80) if f"{size}GB" in kind}
    assert len(stated) == 9
    assert {kind: GPUS[kind].hbm_bytes >> 30 for kind in stated} == stated


def test_the_peak_of_several_devices_is_their_sum_and_unknown_with_one_that_is():
    assert peak_flops(["NVIDIA L4", "Tesla T4"]) == 121e12 + 65e12
    assert peak_flops(["NVIDIA L4", "NVIDIA GeForce GTX 1080"]) is None
    assert CHIPS["TPU v5 lite"].name == "v5e"

"""scripts/pods/slices.py: sizes and names of TPU slices, beside the planner's."""

import pytest

from aligner_jax.planning.topology import topology_devices
from scripts.pods.slices import FLAT, GENERATIONS, Mistake, parse_slice

# Topology, then chips, hosts, machine type and accelerator type, as in Google Cloud's tables.
KNOWN = [
    ("v4:2x2x1", 4, 1, "ct4p-hightpu-4t", "v4-8"),
    ("v4:2x2x4", 16, 4, "ct4p-hightpu-4t", "v4-32"),
    ("v5e:1x1", 1, 1, "ct5lp-hightpu-1t", "v5litepod-1"),
    ("v5e:2x4", 8, 2, "ct5lp-hightpu-4t", "v5litepod-8"),
    ("v5e:4x4", 16, 4, "ct5lp-hightpu-4t", "v5litepod-16"),
    ("v5e:16x16", 256, 64, "ct5lp-hightpu-4t", "v5litepod-256"),
    ("v5p:2x2x1", 4, 1, "ct5p-hightpu-4t", "v5p-8"),
    ("v5p:4x4x8", 128, 32, "ct5p-hightpu-4t", "v5p-256"),
    ("v6e:4x8", 32, 8, "ct6e-standard-4t", "v6e-32"),
    ("tpu7x:2x2x2", 8, 2, "tpu7x-standard-4t", "tpu7x-16"),
]


@pytest.mark.parametrize(("name", "chips", "hosts", "machine", "accelerator"), KNOWN)
def test_slices_are_those_of_google_cloud(name: str, chips: int, hosts: int, machine: str, accelerator: str):
    it = parse_slice(name)
    assert (it.chips, it.hosts, it.machine_type, it.accelerator_type) == (chips, hosts, machine, accelerator)
    assert it.topology == name
    assert it.hosts * it.chips_per_host == it.chips


@pytest.mark.parametrize("name", ["v4:2x2x4", "v5e:2x2", "v5e:2x4", "v5e:4x4", "v5p:2x4x4", "v6e:4x4", "tpu7x:2x2x2"])
def test_chips_and_hosts_are_those_of_the_planner(name: str):
    it = parse_slice(name)
    devices = topology_devices(name)
    assert len({tuple(device.coords) for device in devices}) == it.chips
    assert len({device.process_index for device in devices}) == it.hosts


def test_one_host_may_have_eight_chips():
    it = parse_slice("v5e:2x4", 8)
    assert (it.hosts, it.machine_type) == (1, "ct5lp-hightpu-8t")
    with pytest.raises(Mistake, match="hosts of v5e:4x4 have 4 chips"):
        parse_slice("v5e:4x4", 8)


@pytest.mark.parametrize("shape", FLAT)
def test_accelerator_types_are_understood(shape: str):
    it = parse_slice(f"v5e:{shape}")
    assert parse_slice(it.accelerator_type) == it == parse_slice(f"v5e-{it.chips}")


@pytest.mark.parametrize(
    "name",
    ["v5e", "v5e:", "v5e:3x3", "v5e:4x4x4", "v5p:2x2", "v5p:4x4x6", "v5p:8x4x4", "v9:2x2", "v6e-7", "v5e:0x0", "h100"],
)
def test_what_is_no_slice_is_refused(name: str):
    with pytest.raises(Mistake, match=f"--topology={name}"):
        parse_slice(name)


def test_every_generation_of_the_planner_is_there():
    assert set(GENERATIONS) == {"v4", "v5e", "v5p", "v6e", "tpu7x"}

"""Device memory: what the compiler's messages say, and what a step may take on each kind of device."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import pytest

from aligner_jax.runtime import memory
from aligner_jax.runtime.memory import available_bytes, is_exhausted, limit_bytes, needed_bytes

GIB = 1 << 30
IN_ALL = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 31.50G of 15.75G hbm. Exceeded hbm by 15.75G."
TEMPORARIES = "RESOURCE_EXHAUSTED: Allocation type: HLO temp, size (18.25G) exceeds available HBM space"


class Device(NamedTuple):
    """Stands for a device of JAX."""

    platform: str
    device_kind: str
    stats: dict[str, int] | None = None

    def memory_stats(self) -> dict[str, int] | None:
        """Returns the stats, None on backends without them."""
        return self.stats


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Replaces the devices of this process; `available` is the host's available memory in KiB, None for no such file.

    The memory's file is read for CPUs only.
    """

    def place(devices: list[Device], available: int | None = None) -> None:
        monkeypatch.setattr(jax, "local_devices", lambda: devices)
        monkeypatch.setattr(jax, "local_device_count", lambda: len(devices))
        file = tmp_path / "meminfo"
        if available is not None:
            file.write_text(f"MemTotal: 99 kB\nMemAvailable:  {available} kB\nHugePages_Total: 0\n")
        monkeypatch.setattr(memory, "Path", {"/proc/meminfo": file}.get)

    return place


@pytest.mark.parametrize(
    ("message", "needed", "available"),
    [
        (IN_ALL, int(31.5 * GIB), int(15.75 * GIB)),
        (TEMPORARIES, int(18.25 * GIB), None),
        ("Used 800.5M of 1.00T hbm", int(800.5 * 2**20), 1 << 40),
        ("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes.", None, None),
    ],
)
def test_the_compilers_messages(message: str, needed: int | None, available: int | None):
    assert (needed_bytes(message), available_bytes(message)) == (needed, available)


def test_an_error_that_says_memory_is_exhausted():
    assert is_exhausted(jax.errors.JaxRuntimeError(IN_ALL))
    assert not is_exhausted(jax.errors.JaxRuntimeError("INTERNAL: the core is stuck"))


@pytest.mark.parametrize(
    ("device", "limit"),
    [
        (Device("tpu", "TPU v5 lite", {"bytes_limit": 15 * GIB, "bytes_in_use": 5 * GIB}), 12 * GIB),
        (Device("tpu", "TPU v5 lite", {"bytes_limit": 15 * GIB, "bytes_in_use": 1 * GIB}), 15 * GIB),
        (Device("tpu", "TPU v5 lite", {"bytes_limit": 15 * GIB}), 15 * GIB),
        (Device("tpu", "TPU v5 lite"), 16 * GIB),
        (Device("tpu", "TPU v99"), None),
        (Device("gpu", "Tesla T4", {"bytes_limit": 10 * GIB, "bytes_in_use": 3 * GIB}), int(8.5 * GIB)),
        (Device("gpu", "another card", {"bytes_limit": 10 * GIB, "bytes_in_use": 0}), int(9.5 * GIB)),
        (Device("gpu", "Tesla T4", {"num_allocs": 3}), int(0.95 * 16 * GIB)),
        (Device("gpu", "Tesla T4"), int(0.95 * 16 * GIB)),
        (Device("gpu", "another card"), None),
    ],
)
def test_an_accelerators_limit(host: Any, device: Device, limit: int | None):
    host([device] * 4, available=1)
    assert limit_bytes(2 * GIB) == limit


@pytest.mark.parametrize("devices", [1, 8])
def test_a_cpus_limit_is_shared_by_its_devices(host: Any, devices: int):
    host([Device("cpu", "cpu")] * devices, available=32 << 20)
    assert limit_bytes(2 * GIB) == 2 * GIB + 24 * GIB // devices


def test_a_system_that_does_not_say_how_much_memory_is_available(host: Any, tmp_path: Path):
    host([Device("cpu", "cpu")])
    assert limit_bytes(2 * GIB) is None
    (tmp_path / "meminfo").write_text("MemTotal: 99 kB\n")
    assert limit_bytes(2 * GIB) is None


def test_arrays_of_keys_have_bytes_too():
    keys_b = jax.random.split(jax.random.key(0), 3)
    assert memory.nbytes({"keys_b": keys_b, "x": jax.numpy.zeros(5, jax.numpy.int4)}) == 3 * 8 + 2

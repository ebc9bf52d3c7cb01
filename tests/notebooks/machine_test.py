import dataclasses
from types import SimpleNamespace

import jax
import pytest

from aligner_jax.notebooks.machine import Machine, find_machine
from aligner_jax.runtime import platform

T4 = Machine(kind="gpu", name="GPU, 1 × Tesla T4", count=1, memory_bytes=15 << 30, dtype="float16", rows=8)


def test_this_machine_is_a_cpu():
    found = find_machine()
    assert (found.kind, found.count) == ("cpu", jax.local_device_count())
    assert found.dtype == platform.compute_dtype("auto")
    assert found.name.startswith("CPU, ")
    assert found.rows in (1, 4)
    assert 0 < found.memory_bytes < 2**50


def test_a_machine_says_what_fits():
    assert T4.largest_base == int(0.8 * 15 * 2**30) // 2
    assert str(T4) == (
        "found: GPU, 1 × Tesla T4 with 15 GiB free\n"
        "here: float16, 8 rows a training step; a base of up to 6.4 billion parameters fits"
    )


def test_a_tpu_is_the_notebooks_alone():
    assert str(dataclasses.replace(T4, kind="tpu")).endswith("; commands beside the notebook run on the CPU")
    assert "beside" not in str(T4)


@pytest.mark.parametrize(("count", "rows"), [(1, 8), (3, 6), (4, 8), (16, 16)])
def test_rows_are_split_over_all_devices(count: int, rows: int, monkeypatch: pytest.MonkeyPatch):
    device = SimpleNamespace(platform="tpu", device_kind="TPU v5 lite", memory_stats=lambda: None)
    monkeypatch.setattr("jax.local_devices", lambda: [device])
    monkeypatch.setattr("jax.local_device_count", lambda: count)
    monkeypatch.setattr("jax.default_backend", lambda: "tpu")
    found = find_machine()
    assert (found.kind, found.dtype, found.rows, found.memory_bytes) == ("tpu", "bfloat16", rows, 16 << 30)
    assert found.name == f"TPU, {count} × TPU v5 lite"


def test_a_machine_that_does_not_say_its_memory():
    unknown = dataclasses.replace(T4, memory_bytes=None, rows=1)
    assert unknown.largest_base is None
    assert str(unknown) == "found: GPU, 1 × Tesla T4\nhere: float16, 1 row a training step"

import dataclasses

import jax

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


def test_a_machine_that_does_not_say_its_memory():
    unknown = dataclasses.replace(T4, memory_bytes=None, rows=1)
    assert unknown.largest_base is None
    assert str(unknown) == "found: GPU, 1 × Tesla T4\nhere: float16, 1 row a training step"

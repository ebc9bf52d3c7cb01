"""The machine that a notebook runs on, and the settings that suit it."""

import dataclasses
import os
from typing import Literal

import jax

from aligner_jax.runtime import memory, platform

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_SHARE = 0.8
"""Share of a device's memory that a base may take; the rest is for the rows of a step."""


@dataclasses.dataclass(frozen=True)
class Machine:
    """The accelerator of a notebook's kernel, and the settings that suit it.

    Attributes:
      kind: JAX's name of the platform.
      name: name of the device.
      count: number of devices.
      memory_bytes: memory of one device that a base and a step may take together; None if nothing says.
      dtype: dtype that bases are computed in.
      rows: rows of 256 tokens in a training step of a small base.
    """

    kind: Literal["tpu", "gpu", "cpu"]
    name: str
    count: int
    memory_bytes: int | None
    dtype: Literal["float32", "bfloat16", "float16"]
    rows: int

    @property
    def largest_base(self) -> int | None:
        """Number of parameters of the largest base that fits one device in `dtype`; None if its memory is unknown."""
        return None if self.memory_bytes is None else int(_SHARE * self.memory_bytes) // _BYTES[self.dtype]

    def __str__(self) -> str:
        memory_of_it = "" if self.memory_bytes is None else f" with {self.memory_bytes / 2**30:.0f} GiB free"
        room = "" if self.largest_base is None else f"; a base of up to {_rounded(self.largest_base)} parameters fits"
        rows = "1 row" if self.rows == 1 else f"{self.rows} rows"
        # A TPU belongs to one process, which is the notebook's.
        beside = "; commands beside the notebook run on the CPU" if self.kind == "tpu" else ""
        return f"found: {self.name}{memory_of_it}\nhere: {self.dtype}, {rows} a training step{room}{beside}"


def find_machine() -> Machine:
    """Prepares JAX for this machine, which starts its backend, and returns what was found."""
    platform.prepare()
    device, count = jax.local_devices()[0], jax.local_device_count()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if device.platform == "cpu":
        kind, name, rows = "cpu", f"CPU, {cores} core{'s' if cores > 1 else ''}", 1 if cores < 8 else 4
    else:
        # The rows of a step are split over all devices.
        kind, rows = "tpu" if device.platform == "tpu" else "gpu", count * max(8 // count, 1)
        name = f"{kind.upper()}, {count} × {device.device_kind}"
    return Machine(
        kind=kind, name=name, count=count, memory_bytes=memory.limit_bytes(0),
        dtype=platform.compute_dtype("auto"), rows=rows,
    )  # fmt: skip


def _rounded(parameters: int) -> str:
    """Returns a number of parameters with two digits, such as "350 million" or "7.2 billion"."""
    unit, name = (10**9, "billion") if parameters >= 10**9 else (10**6, "million")
    scaled = parameters / unit
    return f"{scaled:.1f} {name}" if scaled < 10 else f"{scaled:.0f} {name}"

"""A program compiled for TPUs that are not here: what it needs of each device, or would need where it does not fit."""

import dataclasses
import re
import time
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from aligner_jax.errors import InputError
from aligner_jax.planning import program_cache
from aligner_jax.planning.collectives import Collective, collectives
from aligner_jax.planning.topology import without_a_cache_of_programs
from aligner_jax.runtime import roofline
from aligner_jax.runtime.config import BaseConfig

_USED = re.compile(r"Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm|\(([\d.]+)([KMGT])\) exceeds available HBM")
"""What a program would need, in the compiler's words; the second of temporaries alone."""


@dataclasses.dataclass(frozen=True)
class Compiled:
    """Of one device, in bytes.

    Attributes:
      peak_bytes: the most memory in use; where the program does not fit, what the compiler says that it would need.
      temporary_bytes: the most that lives within the program; None where it does not fit, as all below.
      sent: what it sends between devices.
      output_shardings: where its results are.
      text: its scheduled HLO.
      seconds: compile time; that of the first compilation where the program comes from the cache.
    """

    peak_bytes: int
    hbm_bytes: int
    temporary_bytes: int | None
    sent: list[Collective] | None
    output_shardings: Any
    text: str | None
    seconds: float

    @property
    def fits(self) -> bool:
        """Whether the program can be loaded."""
        return self.sent is not None and self.peak_bytes <= self.hbm_bytes


def compile_for(chip: roofline.Chip, jitted: Any, *arguments: Any, **static: Any) -> Compiled:
    """Compiles a jitted function for devices of that chip; mesh and rules are in context.

    Args:
      arguments, static: what it would be called with; `jax.ShapeDtypeStruct`s with shardings for arrays.

    Raises:
      InputError: it cannot be compiled, for another reason than its size.
    """
    mesh = next(leaf.sharding.mesh for leaf in jax.tree.leaves(arguments))
    with without_a_cache_of_programs():
        lowered = jitted.lower(*arguments, **static)
    digest = program_cache.digest_of(lowered, list(mesh.devices.flat))
    made = program_cache.load(digest)
    if made is None:
        made = _compile(lowered, mesh)
        program_cache.save(digest, made)
    if isinstance(made, program_cache.TooLarge):
        return Compiled(_needed_bytes(made.message), chip.hbm_bytes, None, None, None, None, made.seconds)
    return Compiled(
        made.peak_bytes, chip.hbm_bytes, made.temporary_bytes, collectives(made.text),
        _shardings(lowered, mesh, made.output_specs), made.text, made.seconds,
    )  # fmt: skip


def _compile(lowered: jax.stages.Lowered, mesh: Mesh) -> program_cache.Program | program_cache.TooLarge:
    began = time.monotonic()
    try:
        with without_a_cache_of_programs():
            compiled: Any = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if _USED.search(str(error)) is None:
            first = str(error).strip().splitlines()[0]
            raise InputError(f"the TPU compiler cannot compile the program: {first}") from error
        return program_cache.TooLarge(str(error), time.monotonic() - began)
    took, memory = time.monotonic() - began, compiled.memory_analysis()
    specs = [list(where.spec) for where in jax.tree.leaves(compiled.output_shardings)]
    return program_cache.Program(
        compiled.as_text(), memory.peak_memory_in_bytes, memory.temp_size_in_bytes, specs, took
    )


def _needed_bytes(message: str) -> int:
    """Returns the memory that a program would need, from the compiler's refusal."""
    used = _USED.search(message)
    assert used is not None
    number, unit = (group for group in used.groups() if group)
    return int(float(number) * 2 ** (10 * (1 + "KMGT".index(unit))))


def _shardings(lowered: jax.stages.Lowered, mesh: Mesh, specs: list[list]) -> Any:
    """Returns the shardings of a program's results, in their tree."""
    leaves = [
        NamedSharding(mesh, PartitionSpec(*(tuple(axis) if isinstance(axis, list) else axis for axis in spec)))
        for spec in specs
    ]
    return jax.tree.unflatten(jax.tree.structure(lowered.out_info), leaves)


def chip_of(device: Any) -> roofline.Chip:
    """What is known of the device's kind. Raises InputError where it is another."""
    chip = roofline.CHIPS.get(device.device_kind)
    if chip is None:
        raise InputError(f"{device.device_kind!r} is not a known chip; there are {', '.join(roofline.CHIPS)}")
    return chip


def compute_dtype(base: BaseConfig) -> str:
    """What a TPU computes in, and holds what is not quantized in."""
    return "bfloat16" if base.dtype == "auto" else base.dtype


def weight_dtype(base: BaseConfig) -> str:
    """What the projections of the layers are held in on a TPU."""
    return compute_dtype(base) if base.quantization == "none" else base.quantization


def nbytes(tree: Any) -> int:
    """Bytes of the parts that one device holds."""
    return sum(bits(leaf.dtype) * _size(leaf.sharding.shard_shape(leaf.shape)) // 8 for leaf in jax.tree.leaves(tree))


def bits(dtype: Any) -> int:
    """Of one number."""
    return 4 if "int4" in str(dtype) else 8 * jax.numpy.dtype(dtype).itemsize


def _size(shape: Sequence[int]) -> int:
    size = 1
    for each in shape:
        size *= each
    return size

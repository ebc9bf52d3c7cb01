"""Compiles programs for TPUs that are not attached, and returns the memory that each device needs."""

import dataclasses
import time
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from aligner_jax.errors import InputError
from aligner_jax.planning import program_cache
from aligner_jax.planning.collectives import Collective, collectives
from aligner_jax.planning.topology import without_a_cache_of_programs
from aligner_jax.runtime import chips
from aligner_jax.runtime.config import BaseConfig
from aligner_jax.runtime.memory import available_bytes, needed_bytes
from aligner_jax.runtime.program_digest import digest_of


@dataclasses.dataclass(frozen=True)
class Compiled:
    """Per-device memory of a compiled program, in bytes. The fields that may be None are None if it does not fit.

    Attributes:
      peak_bytes: peak memory; if the program does not fit, the memory that the compiler reports as needed.
      hbm_bytes: memory of the device.
      limit_bytes: memory that a program may take, as far as the compiler says it: slightly less than `hbm_bytes`.
      temporary_bytes: peak memory of values that live only within the program.
      sent: collectives of the program.
      output_shardings: shardings of the results, in their tree.
      text: scheduled HLO.
      seconds: compile time; for a program from the cache, that of its first compilation.
    """

    peak_bytes: int
    hbm_bytes: int
    limit_bytes: int
    temporary_bytes: int | None
    sent: list[Collective] | None
    output_shardings: Any
    text: str | None
    seconds: float

    @property
    def fits(self) -> bool:
        """Returns True if the program fits the device's memory."""
        return self.sent is not None and self.peak_bytes <= self.hbm_bytes


def compile_for(chip: chips.Chip, jitted: Any, *arguments: Any, **static: Any) -> Compiled:
    """Compiles a jitted function for devices of a chip; mesh and rules are in context.

    Args:
      chip: chip of the devices.
      jitted: function to compile.
      arguments, static: arguments of the call, with `jax.ShapeDtypeStruct`s that have shardings in place of arrays.
        Without arguments the program is for the mesh in context.

    Raises:
      InputError: the function cannot be compiled for another reason than its size.
    """
    leaves = jax.tree.leaves(arguments)
    mesh = leaves[0].sharding.mesh if leaves else jax.sharding.get_mesh()
    with without_a_cache_of_programs():
        lowered = jitted.lower(*arguments, **static)
    digest = digest_of(lowered, list(mesh.devices.flat))
    made = program_cache.load(digest)
    if made is None:
        made = _compile(lowered, mesh)
        program_cache.save(digest, made)
    if isinstance(made, program_cache.TooLarge):
        needed = needed_bytes(made.message)
        assert needed is not None
        available = available_bytes(made.message) or chip.hbm_bytes
        return Compiled(needed, chip.hbm_bytes, available, None, None, None, None, made.seconds)
    return Compiled(
        made.peak_bytes, chip.hbm_bytes, chip.hbm_bytes, made.temporary_bytes, collectives(made.text),
        _shardings(lowered, mesh, made.output_specs), made.text, made.seconds,
    )  # fmt: skip


def _compile(lowered: jax.stages.Lowered, mesh: Mesh) -> program_cache.Program | program_cache.TooLarge:
    began = time.monotonic()
    try:
        with without_a_cache_of_programs():
            compiled: Any = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if needed_bytes(str(error)) is None:
            first = str(error).strip().splitlines()[0]
            raise InputError(f"the TPU compiler cannot compile the program: {first}") from error
        return program_cache.TooLarge(str(error), time.monotonic() - began)
    took, memory = time.monotonic() - began, compiled.memory_analysis()
    specs = [list(where.spec) for where in jax.tree.leaves(compiled.output_shardings)]
    return program_cache.Program(
        compiled.as_text(), memory.peak_memory_in_bytes, memory.temp_size_in_bytes, specs, took
    )


def _shardings(lowered: jax.stages.Lowered, mesh: Mesh, specs: list[list]) -> Any:
    """Returns the shardings of a program's results, in the tree of the results."""
    leaves = [
        NamedSharding(mesh, PartitionSpec(*(tuple(axis) if isinstance(axis, list) else axis for axis in spec)))
        for spec in specs
    ]
    return jax.tree.unflatten(jax.tree.structure(lowered.out_info), leaves)


def chip_of(device: Any) -> chips.Chip:
    """Returns the chip of a device. Raises InputError if the device's kind is unknown."""
    chip = chips.CHIPS.get(device.device_kind)
    if chip is None:
        raise InputError(f"{device.device_kind!r} is not a known chip; there are {', '.join(chips.TPUS)}")
    return chip


def compute_dtype(base: BaseConfig) -> str:
    """Returns the dtype that a TPU computes in; weights that are not quantized have it too."""
    return "bfloat16" if base.dtype == "auto" else base.dtype


def weight_dtype(base: BaseConfig) -> str:
    """Returns the dtype of the layers' projections on a TPU: the quantized one, or the compute dtype."""
    return compute_dtype(base) if base.quantization == "none" else base.quantization

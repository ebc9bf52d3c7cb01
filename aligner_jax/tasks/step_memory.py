"""Memory of a run's training step with different rematerialization, from programs compiled for the run's devices."""

import contextlib
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from aligner_jax.errors import InputError
from aligner_jax.model.llama import LlamaConfig, Remat
from aligner_jax.peft import Adapter
from aligner_jax.runtime import agreement, platform
from aligner_jax.runtime.config import TrainConfig
from aligner_jax.runtime.files import write_atomically
from aligner_jax.runtime.memory import available_bytes, is_exhausted, limit_bytes, nbytes, needed_bytes
from aligner_jax.runtime.program_digest import cache_folder, digest_of
from aligner_jax.tasks.program import Program, abstract_arguments, make_program
from aligner_jax.tasks.remat import Memory, need_of
from aligner_jax.tasks.same_step import check_same_step


@dataclasses.dataclass(frozen=True)
class Entry:
    """Remembered result of a compilation.

    Attributes:
      peak_bytes: memory that the step needs on one device.
      available_bytes: memory that it may take, if the compiler says so.
      compiles: False if the compiler refuses the step for its size.
    """

    peak_bytes: int
    available_bytes: int | None
    compiles: bool


class StepMemory:
    """Memory of a run's step by rematerialization; a collective, which all processes must use alike.

    Of several processes, the one with the least memory decides. Results are remembered in the folder `remat` of JAX's
    compilation cache by the digest of the step.

    Attributes:
      limit_bytes: memory that the step may take on a device; None if the devices do not say.
      need: lower bound of the step's memory.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: LlamaConfig,
        adapter: Adapter,
        program: Program,
        reference: Adapter | None,
        check: Callable[[], None],
    ) -> None:
        """Takes the arguments of `chosen_remat.with_least_remat`."""
        self._config, self._model, self._adapter, self._check = config, model, adapter, check
        self._mesh, self._fitting = program.mesh, dict[Remat, Program]()
        dtype = platform.compute_dtype(config.base.dtype)
        self._arguments = abstract_arguments(config, model, program, dtype, reference)
        size = nbytes(self._arguments)
        limits: list[int | None] = [json.loads(each) for each in agreement.exchange(json.dumps(limit_bytes(size)))]
        known = [each for each in limits if each is not None]
        self.limit_bytes = min(known) if len(known) == len(limits) else None
        self.need = need_of(config, model, self._mesh, self._arguments[1], size)

    def __call__(self, remat: Remat) -> Memory:
        """Returns the memory of the step, which is compiled unless it is remembered."""
        self._check()
        program = self._jitted(remat)
        jitted: Any = program.step
        with program.use():
            # A compiled step, which the search hands to the run, can no longer be compared.
            check_same_step(program, self._arguments)
            lowered: jax.stages.Lowered = jitted.lower(*self._arguments)
        folder, compiled = cache_folder("remat"), None
        path = folder and folder / f"{digest_of(lowered, list(self._mesh.devices.flat))}.json"
        entry = together(path and _remembered(path))
        if entry is None:
            with program.use():
                mine, compiled = self._compile(remat, lowered)
            entry = together(mine)
            assert entry is not None
            if path is not None:
                with contextlib.suppress(InputError):
                    write_atomically(path, json.dumps(dataclasses.asdict(entry), indent=2) + "\n")
        limit = min((each for each in (self.limit_bytes, entry.available_bytes) if each is not None), default=0)
        memory = Memory(entry.peak_bytes, limit, entry.compiles and entry.peak_bytes <= limit)
        if memory.fits:
            # The search takes the last program that fits.
            self._fitting = {} if compiled is None else {remat: dataclasses.replace(program, step=compiled)}
        return memory

    def program_of(self, remat: Remat) -> Program:
        """Returns the program; its step is compiled if it is the last that fits, and this process has compiled it."""
        return self._fitting.get(remat) or self._jitted(remat)

    def _jitted(self, remat: Remat) -> Program:
        config = dataclasses.replace(self._config, remat=remat)
        return make_program(config, self._model, self._adapter, self._mesh)

    def _compile(self, remat: Remat, lowered: jax.stages.Lowered) -> tuple[Entry, Any]:
        try:
            compiled: Any = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if not is_exhausted(error):
                raise
            needed = needed_bytes(str(error)) or max(self.limit_bytes or 0, int(self.need.of(remat)))
            return Entry(needed, available_bytes(str(error)), False), None
        return Entry(_peak_bytes(compiled), None, True), compiled


def together(mine: Entry | None) -> Entry | None:
    """Returns what holds for all processes, None if one of them has no entry. All processes must call it."""
    told = agreement.exchange(json.dumps(mine and dataclasses.asdict(mine)))
    entries = [each and Entry(**each) for each in map(json.loads, told)]
    if None in entries:
        return None
    available = [each.available_bytes for each in entries if each.available_bytes is not None]
    return Entry(
        max(each.peak_bytes for each in entries),
        min(available, default=None),
        all(each.compiles for each in entries),
    )


def _peak_bytes(compiled: Any) -> int:
    memory = compiled.memory_analysis()
    if jax.default_backend() == "tpu":
        return memory.peak_memory_in_bytes
    # Other backends allocate the temporaries as one block, however little of it is used at once.
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes + results + memory.temp_size_in_bytes


def _remembered(path: Path) -> Entry | None:
    """Returns the entry in a file; None if the file is missing or damaged."""
    try:
        entry = Entry(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None
    kinds = (int, int | None, bool)
    values = dataclasses.astuple(entry)
    return entry if all(isinstance(value, kind) for value, kind in zip(values, kinds, strict=True)) else None

"""A run's choice of remat "auto": searched on its own devices, recorded in its workdir, and reused when it resumes."""

import contextlib
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from aligner_jax.errors import InputError
from aligner_jax.files.json_text import read_object
from aligner_jax.model.llama import LlamaConfig, Remat
from aligner_jax.model.remat import check_name
from aligner_jax.peft import Adapter
from aligner_jax.runtime import agreement, distributed, platform, sharding
from aligner_jax.runtime.config import TrainConfig
from aligner_jax.runtime.files import write_atomically
from aligner_jax.runtime.memory import available_bytes, limit_bytes, nbytes, needed_bytes
from aligner_jax.runtime.program_digest import cache_folder, digest_of
from aligner_jax.runtime.workdir import Workdir
from aligner_jax.tasks.program import Program, abstract_arguments, make_program
from aligner_jax.tasks.remat import Choice, Memory, described, least_remat, need_of

_RECORD = "remat.json"


def with_least_remat(
    config: TrainConfig,
    model: LlamaConfig,
    adapter: Adapter,
    program: Program,
    reference: Adapter | None,
    workdir: Workdir,
    *,
    check: Callable[[], None],
    console: Console,
) -> Program:
    """Returns the program with the least recomputation that fits this run's devices; its step is compiled already.

    A run that was begun on the same devices keeps its choice, since another one rounds differently. All processes use
    the choice of process 0.

    Args:
      program: the program of the config, whose remat is "auto".
      reference: the frozen adapter that every step compares with, or None.
      check: called before each compilation; ends a run that was asked to stop.
    """
    here = {"devices": sharding.describe(program.mesh), "rules": dict(config.mesh.rules)}
    recorded = _of_first(_recorded(workdir.path / _RECORD, here))
    if recorded is not None:
        console.out(f"remat: {described(Choice(recorded, {}), model.num_layers)}, as this run began")
        return make_program(dataclasses.replace(config, remat=recorded), model, adapter, program.mesh)
    steps = _Steps(config, model, adapter, program, reference, check)
    choice = least_remat(steps.memory_of, steps.need, steps.limit_bytes)
    if distributed.is_first():
        workdir.check()
        write_atomically(workdir.path / _RECORD, json.dumps({"remat": choice.remat, **here}, indent=2) + "\n")
    console.out(f"remat: {described(choice, model.num_layers)}")
    return steps.program_of(choice.remat)


class _Steps:
    """Training steps of a run with different rematerialization, compiled for its devices.

    Peaks are remembered in the folder `remat` of JAX's compilation cache, by the digest of the step that recomputes
    everything. A run of the same program then compiles only the step that it takes.
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
        self._config, self._model, self._adapter, self._check = config, model, adapter, check
        self._mesh, self._compiled = program.mesh, dict[Remat, Program]()
        dtype = platform.compute_dtype(config.base.dtype)
        self._arguments = abstract_arguments(config, model, program, dtype, reference)
        size = nbytes(self._arguments)
        self.limit_bytes: int = _of_first(limit_bytes(size))
        self.need = need_of(config, model, self._mesh, self._arguments[1], size)
        _, lowered = self._lowered("full")
        digest = digest_of(lowered, list(self._mesh.devices.flat))
        folder = cache_folder("remat")
        self._entry = None if folder is None else folder / f"{digest}.json"
        self._known: dict[Remat, dict[str, Any]] = _of_first(_remembered(self._entry))

    def memory_of(self, remat: Remat) -> Memory:
        """Compiles the step, unless its memory is remembered, and returns its memory."""
        if remat not in self._known:
            self._check()
            self._known[remat] = _of_first(self._compile(remat))
            if self._entry is not None and distributed.is_first():
                with contextlib.suppress(InputError):
                    write_atomically(self._entry, json.dumps(self._known, indent=2) + "\n")
        known = self._known[remat]
        limit = min(self.limit_bytes, known["available_bytes"] or self.limit_bytes)
        return Memory(known["peak_bytes"], limit, known["compiles"] and known["peak_bytes"] <= limit)

    def program_of(self, remat: Remat) -> Program:
        """Returns the program; its step is the compiled one if this process has compiled it."""
        return self._compiled.get(remat) or self._jitted(remat)

    def _jitted(self, remat: Remat) -> Program:
        config = dataclasses.replace(self._config, remat=remat)
        return make_program(config, self._model, self._adapter, self._mesh)

    def _lowered(self, remat: Remat) -> tuple[Program, jax.stages.Lowered]:
        program = self._jitted(remat)
        jitted: Any = program.step
        with program.use():
            return program, jitted.lower(*self._arguments)

    def _compile(self, remat: Remat) -> dict[str, Any]:
        program, lowered = self._lowered(remat)
        try:
            with program.use():
                compiled: Any = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            needed, available = needed_bytes(str(error)), available_bytes(str(error))
            return _entry(needed or max(self.limit_bytes, int(self.need.of(remat))), available, False)
        self._compiled[remat] = dataclasses.replace(program, step=compiled)
        return _entry(_peak_bytes(compiled), None, True)


def _entry(peak_bytes: int, available_bytes: int | None, compiles: bool) -> dict[str, Any]:
    return {"peak_bytes": peak_bytes, "available_bytes": available_bytes, "compiles": compiles}


def _peak_bytes(compiled: Any) -> int:
    memory = compiled.memory_analysis()
    if jax.default_backend() == "tpu":
        return memory.peak_memory_in_bytes
    # Other backends allocate the temporaries as one block, however little of it is used at once.
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes + results + memory.temp_size_in_bytes


def _remembered(path: Path | None) -> dict[Remat, dict[str, Any]]:
    """Returns the remembered memory of steps by remat; none of them if the file is missing or damaged."""
    if path is None:
        return {}
    try:
        found = json.loads(path.read_text())
        entries = {remat: _entry(**each) for remat, each in found.items()}
        for remat, each in entries.items():
            check_name(remat)
            wanted = (int, int | None, bool)
            if not all(isinstance(value, kind) for value, kind in zip(each.values(), wanted, strict=True)):
                return {}
    except (OSError, ValueError, TypeError, AttributeError, InputError):
        return {}
    return entries


def _recorded(path: Path, here: dict[str, Any]) -> Remat | None:
    """Returns the choice with which a run was begun on these devices; None if there is none that can be used."""
    try:
        found = read_object(path)
        remat = found.pop("remat", None)
        if found != here or not isinstance(remat, str):
            return None
        check_name(remat)
    except (OSError, InputError):
        return None
    return remat


def _of_first[T](value: T) -> T:
    """Returns the value of process 0, which is made of JSON's types. A collective: all processes must call it."""
    return json.loads(agreement.exchange(json.dumps(value))[0])

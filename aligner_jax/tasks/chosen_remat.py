"""A run's choice of remat "auto": searched on its own devices, and kept when the run resumes on them."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from rich.console import Console

from aligner_jax.errors import InputError
from aligner_jax.model.llama import LlamaConfig, Remat
from aligner_jax.model.remat import AUTO
from aligner_jax.peft import Adapter
from aligner_jax.runtime import sharding
from aligner_jax.runtime.config import TrainConfig
from aligner_jax.runtime.memory import is_exhausted
from aligner_jax.runtime.progress import stage
from aligner_jax.tasks.program import Program, make_program
from aligner_jax.tasks.remat import Choice, described, least_remat
from aligner_jax.tasks.step_memory import StepMemory


def with_least_remat(
    config: TrainConfig,
    model: LlamaConfig,
    adapter: Adapter,
    program: Program,
    reference: Adapter | None,
    *,
    recorded: Mapping[str, Any],
    check: Callable[[], None],
    console: Console,
) -> tuple[Program, dict[str, Any]]:
    """Returns the program with the least recomputation that fits this run's devices.

    A run that resumes on the same devices keeps its choice, since another one rounds differently. All processes make
    the same choice.

    Args:
      program: the program of the config, whose remat is "auto".
      reference: the frozen adapter that every step compares with, or None.
      recorded: record of the checkpoint that the run resumes from, empty without one. It has the "name" of the choice,
        and the devices and sharding rules that it was made for; without these, it holds for all.
      check: called before each program is lowered and compiled; ends a run that was asked to stop.

    Returns:
      The program, whose step may be compiled already, and the record for the run's checkpoints.
    """
    here = {"devices": sharding.describe(program.mesh), "rules": dict(config.mesh.rules)}
    if "name" in recorded and all(recorded.get(name, value) == value for name, value in here.items()):
        name = recorded["name"]
        console.out(f"remat: {described(Choice(name, {}), model.num_layers)}, as this run began")
        return _with(config, name, model, adapter, program), {"name": name, **here}
    memory = StepMemory(config, model, adapter, program, reference, check)
    if memory.limit_bytes is None:
        kind = program.mesh.devices.flat[0].device_kind
        console.out(f"remat: full, since nothing says how much memory {kind} has; --config.remat=dots recomputes less")
        return _with(config, "full", model, adapter, program), {"name": "full", **here}
    with stage(console, "searching for the least recomputation that fits, by compiling steps"):
        choice = least_remat(memory, memory.need, memory.limit_bytes)
    console.out(f"remat: {described(choice, model.num_layers)}")
    return memory.program_of(choice.remat), {"name": choice.remat, **here}


@contextlib.contextmanager
def exhaustion_is_one_sentence(config: TrainConfig, remat: Remat) -> Iterator[None]:
    """Turns JAX's error of a device without enough memory into an InputError.

    Args:
      remat: rematerialization of the steps; if the config says "auto", the choice.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not is_exhausted(error):
            raise
        told = ", which config.remat 'auto' took" if config.remat == AUTO else ""
        less = "a shorter --config.data.sequence_length"
        if config.data.batch_size > config.optim.accumulate:
            less = f"a smaller --config.data.batch_size, a larger --config.optim.accumulate or {less}"
        advice = less if remat == "full" else f"--config.remat=full, which needs the least memory, or {less}"
        raise InputError(
            f"the devices' memory is exhausted in a run with remat {remat!r}{told}: give {advice}"
        ) from error


def _with(config: TrainConfig, remat: Remat, model: LlamaConfig, adapter: Adapter, program: Program) -> Program:
    return make_program(dataclasses.replace(config, remat=remat), model, adapter, program.mesh)

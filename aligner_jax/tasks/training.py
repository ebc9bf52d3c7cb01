"""One training run from start to end: base, adapter, data, steps, the adapter's file and the report."""

import contextlib
import dataclasses
import functools
import math
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from aligner_jax.data import pipeline
from aligner_jax.errors import InputError
from aligner_jax.evals import before_after
from aligner_jax.model.llama import abstract_params
from aligner_jax.model.remat import AUTO
from aligner_jax.objectives.step import TrainState, init_state
from aligner_jax.peft import METHODS, Adapter
from aligner_jax.peft.artifact import save_adapter
from aligner_jax.peft.rows import unstack_adapter
from aligner_jax.runtime import agreement, distributed, platform, roofline, sharding
from aligner_jax.runtime.checkpoint import Checkpoints
from aligner_jax.runtime.config import TrainConfig, as_dict
from aligner_jax.runtime.metrics import MetricsWriter
from aligner_jax.runtime.preemption import StopRequests
from aligner_jax.runtime.progress import stage
from aligner_jax.runtime.same_run import Origin, check_same_run, save_config
from aligner_jax.runtime.wandb_run import import_wandb
from aligner_jax.runtime.watchdog import Watchdog
from aligner_jax.runtime.workdir import Workdir
from aligner_jax.tasks.chosen_remat import exhaustion_is_one_sentence, with_least_remat
from aligner_jax.tasks.early_checks import check_early
from aligner_jax.tasks.first_adapter import check_adapter, first_adapter
from aligner_jax.tasks.loop import Run, run_steps
from aligner_jax.tasks.objectives import complete, objective_of, parse_complete
from aligner_jax.tasks.program import make_program
from aligner_jax.tasks.task import TaskInputs
from aligner_jax.weights.base import Base, load_base, locate, unused_model


@dataclasses.dataclass(frozen=True)
class Trained:
    """Results of a finished run: the trained adapter, or a sweep's stack of adapters, and the frozen base."""

    adapter: Adapter
    base: Base


def train(config: TrainConfig, workdir: Path, console: Console) -> Adapter:
    """Returns the adapter that `run_training` trains."""
    return run_training(config, workdir, console).adapter


def run_training(config: TrainConfig, workdir: Path, console: Console, *, owns_process: bool = True) -> Trained:
    """Runs the training from start to end.

    Args:
      config: config of the run.
      workdir: folder of the run.
      console: console for progress and results.
      owns_process: True in a command. In a user's process nothing ends the process: a second signal interrupts at
        once, and a wait that is too long is only told.

    Raises:
      InputError: the config, the base, the data or the workdir cannot be used, or they differ between processes.
      Stopped: the process was asked to stop.
    """
    with StopRequests(config.steps, owns_process=owns_process) as stop_requests:
        config = complete(config)
        agreement.check_same_config(config)
        before_after.check_form(config.report.form)
        check_adapter(config)
        with Workdir(workdir) as held:
            with agreement.failing_together():
                if config.metrics.wandb is not None and distributed.is_first():
                    import_wandb()
                config = check_same_run(config, workdir, parse_complete)
                check_early(config, console)
            mesh, rules = sharding.mesh_of(config.mesh), sharding.rules_of(config.mesh)
            with sharding.use(mesh, rules):
                return _train_on(mesh, rules, config, held, stop_requests, console)


def _train_on(
    mesh: Mesh,
    rules: sharding.Rules,
    config: TrainConfig,
    workdir: Workdir,
    stop_requests: StopRequests,
    console: Console,
) -> Trained:
    base = _load_base(mesh, rules, config, console)
    adapter = first_adapter(config, base.config, base)
    num_adapters = config.sweep.num_adapters
    of_each = "" if num_adapters is None else f" in each of {num_adapters} adapters"
    console.out(f"adapter: {adapter}, {adapter.num_params // (num_adapters or 1):,} trained parameters{of_each}")
    stop_requests.check()
    objective, options = objective_of(config)
    task = objective.task(TaskInputs(config, options, base, adapter, workdir, stop_requests.check, console))
    program = make_program(config, base.config, adapter, mesh)
    state = jax.device_put(init_state(adapter, program.optimizer), program.replicated)

    def model_flops(batch: pipeline.Batch) -> float:
        method = METHODS[adapter.method]
        return roofline.train_step(
            base.config, batch_size=config.data.batch_size, sequence_length=config.data.sequence_length,
            adapter=method.cost(adapter.options, base.config), trains_base=method.trains_base,
            targets=float(np.mean(batch.loss_mask_bt)),
        ).model_flops  # fmt: skip

    def evaluate(state: TrainState) -> dict[str, float]:
        return task.evaluate(adapter.replace(trainable=state.trainable))

    def search_goes_on() -> None:
        watchdog.waiting_for("a compilation for the least recomputation that fits", compiles=True)
        stop_requests.check()

    origin, folder = Origin(config, task.input_digests, workdir.path, parse_complete), workdir.path / "checkpoints"
    with contextlib.ExitStack() as stack:
        with (
            Watchdog(config.stall, ends_process=stop_requests.owns_process) as watchdog,
            Checkpoints(folder, keep=config.checkpoint.keep, origin=origin, check=workdir.check) as checkpoints,
        ):
            watchdog.waiting_for("the checkpoint to go on from", compiles=True)
            restored = checkpoints.restore(state)
            if restored is not None and restored[0] > config.steps:
                at = f"{checkpoints.directory} is at step {restored[0]} already"
                raise InputError(f"config.steps is {config.steps}, but {at}")
            if restored is None:
                origin.note_inputs()
            else:
                restored_step, state, data_state = restored
                task.feed.set_state(data_state)
                console.out(f"resuming after step {restored_step} of {config.steps}")
                if config.optim.cosine_zero == "at_last":
                    console.out("the cosine is that of the version that began this run: its last update has rate 0")
            save_config(config, workdir.path)
            if config.remat != AUTO:
                checkpoints.remat = {"name": config.remat}
            else:
                program, checkpoints.remat = with_least_remat(
                    config, base.config, adapter, program, task.reference,
                    recorded=checkpoints.remat, check=search_goes_on, console=console,
                )  # fmt: skip
            opened = MetricsWriter(
                workdir.path, resume_step=int(state.step), config=as_dict(config), wandb=config.metrics.wandb
            )
            # Open until the report is made, whose results are metrics too.
            writer = stack.enter_context(opened)
            run = Run(
                config, workdir, program, base.params, task.reference, task.feed, checkpoints, writer, model_flops,
                evaluate if task.has_heldout else None, stop_requests, watchdog, console,
            )  # fmt: skip
            with exhaustion_is_one_sentence(config, checkpoints.remat["name"]):
                state = run_steps(run, state)
        stop_requests.end_steps()

        adapter = adapter.replace(trainable=state.trainable)
        _save(config, adapter, base, workdir, console)
        if task.has_heldout:
            console.out("measuring before and after on the held-out examples…")
            measured = task.report(adapter, workdir.path / "adapter.safetensors")
            if not all(writer.holds(config.steps, name) for name in measured):
                writer.write(config.steps, **measured)
    return Trained(adapter, base)


def _save(config: TrainConfig, adapter: Adapter, base: Base, workdir: Workdir, console: Console) -> None:
    prompt_format = {"template": config.data.template, "system": config.data.system}
    for name, each in named_adapters(config, adapter).items():
        path = workdir.path / name
        workdir.check()
        save_adapter(each, path, base=base, prompt_format=prompt_format)
        console.out(f"saved: {path}, {path.stat().st_size:,} bytes")


def _load_base(mesh: Mesh, rules: sharding.Rules, config: TrainConfig, console: Console) -> Base:
    """Loads the frozen base with the shardings of the step, and prints its description."""
    # A single device uses the host's arrays without a copy.
    split = functools.partial(sharding.param_shardings, mesh=mesh, rules=rules) if mesh.size > 1 else None
    dtype, held_as = platform.compute_dtype(config.base.dtype), config.base
    if not distributed.is_alone():
        # Each process reads only its own shards, so nothing later would notice that they come from different models.
        agreement.check_same({"base": agreement.files_digest(locate(held_as.path))})
    with stage(console, f"loading the base {held_as.path}"):
        base = load_base(
            held_as.path, dtype, quantization=held_as.quantization, group_size=held_as.group_size, shardings=split
        )
    if mesh.size > 1:
        if base.quantization is not None:
            # Quantization leaves the sharding of scales to the compiler; the step needs the declared shardings.
            held_shardings = sharding.param_shardings(base.config, mesh, rules, base.quantization)
            base = base.replace(params=jax.device_put(base.params, held_shardings))
        console.out(f"mesh: {sharding.describe(mesh)}")
    base_size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_params(base.config)))
    held = f", projections in {base.quantization}" if base.quantization else ""
    console.out(f"base: {config.base.path}, {base_size:,} parameters in {dtype}{held}, frozen")
    if sentence := unused_model(config.base, base.config):
        console.out(f"base: {sentence}")
    return base


def named_adapters(config: TrainConfig, adapter: Adapter) -> dict[str, Adapter]:
    """Returns the adapters to save, by file name: one adapter, or all of a sweep."""
    if config.sweep.num_adapters is None:
        return {"adapter.safetensors": adapter}
    return {f"adapter_{i}.safetensors": unstack_adapter(adapter, i) for i in range(config.sweep.num_adapters)}

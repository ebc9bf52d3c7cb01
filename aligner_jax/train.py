"""Train an adapter over a frozen base.

python -m aligner_jax.train --config=configs/quickstart.py [--workdir=DIR] [--config.optim.lr=1e-3]

The workdir (runs/NAME by default, NAME being the config's) gets config.json, metrics.jsonl, TensorBoard event files,
checkpoints/ and, at the end, adapter.safetensors (of a sweep adapter_0.safetensors, …) and report.json. The same
command goes on where a run was ended.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import grain
import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh
from rich.console import Console

from aligner_jax.data import pipeline
from aligner_jax.errors import InputError
from aligner_jax.evals import before_after
from aligner_jax.model.llama import Params, abstract_params
from aligner_jax.objectives.step import StepMetrics, TrainState, init_state
from aligner_jax.objectives.window import Window
from aligner_jax.peft import METHODS, Adapter
from aligner_jax.peft.artifact import save_adapter
from aligner_jax.peft.rows import unstack_adapter
from aligner_jax.runtime import agreement, command, distributed, optim, platform, roofline, sharding
from aligner_jax.runtime.checkpoint import Checkpoints
from aligner_jax.runtime.config import TrainConfig, parse_config
from aligner_jax.runtime.files import place
from aligner_jax.runtime.global_batch import global_batch
from aligner_jax.runtime.metrics import MetricsWriter
from aligner_jax.runtime.nonfinite import SkippedSteps
from aligner_jax.runtime.preemption import StopRequests
from aligner_jax.runtime.progress import Progress
from aligner_jax.runtime.same_run import Origin, check_same_run, save_config
from aligner_jax.runtime.watchdog import Watchdog
from aligner_jax.runtime.workdir import Workdir
from aligner_jax.tasks import TASKS
from aligner_jax.tasks.first_adapter import check_adapter, first_adapter, method_choice
from aligner_jax.tasks.program import Program, make_program
from aligner_jax.weights.base import check_model, load_base, locate

CONFIG = command.config_flag()
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; default runs/NAME, NAME being the config file's.")


def main() -> None:
    config = parse_config(CONFIG.load(method_choice()))
    train(config, place(WORKDIR.value or f"runs/{CONFIG.name}", "--workdir"), distributed.console())


def train(config: TrainConfig, workdir: Path, console: Console) -> Adapter:
    """The whole run, in order; returns the trained adapter.

    Raises:
      InputError: the config, the base, the data or the workdir cannot be used, or the run's processes differ in them.
      Stopped: the process was asked to stop.
    """
    with StopRequests(config.steps) as stop_requests:
        agreement.check_same_config(config)
        before_after.check_form(config.report.form)
        check_adapter(config)
        with Workdir(workdir) as held:
            config = check_same_run(config, workdir)
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
) -> Adapter:
    # A single device takes what the host holds without a copy.
    split = functools.partial(sharding.param_shardings, mesh=mesh, rules=rules) if mesh.size > 1 else None
    dtype, held_as = platform.compute_dtype(config.base.dtype), config.base
    if not distributed.is_alone():
        # Each reads its own part of the weights, and in the whole no part would be seen to be another model's.
        agreement.check_same({"base": agreement.files_digest(locate(held_as.path))})
    base = load_base(
        held_as.path, dtype, quantization=held_as.quantization, group_size=held_as.group_size, shardings=split
    )
    check_model(config.base, base.config)
    if mesh.size > 1:
        if base.quantization is not None:
            # Quantizing leaves scales where the compiler likes them; the step takes them where they are declared.
            held_shardings = sharding.param_shardings(base.config, mesh, rules, base.quantization)
            base = base.replace(params=jax.device_put(base.params, held_shardings))
        console.out(f"mesh: {sharding.describe(mesh)}")
    base_size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_params(base.config)))
    held = f", projections in {base.quantization}" if base.quantization else ""
    console.out(f"base: {config.base.path}, {base_size:,} parameters in {dtype}{held}, frozen")
    adapter = first_adapter(config, base.config, base)
    number = config.sweep.num_adapters
    of_each = "" if number is None else f" in each of {number} adapters"
    console.out(f"adapter: {adapter}, {adapter.num_params // (number or 1):,} trained parameters{of_each}")
    stop_requests.check()
    task = TASKS[config.objective.name](config, base, adapter, workdir, stop_requests.check, console)
    program = make_program(config, base.config, adapter, mesh)
    state = jax.device_put(init_state(adapter, program.optimizer), program.whole)

    def model_flops(batch: pipeline.Batch) -> float:
        method = METHODS[adapter.method]
        return roofline.train_step(
            base.config, batch_size=config.data.batch_size, sequence_length=config.data.sequence_length,
            adapter=method.cost(adapter.options, base.config), trains_base=method.trains_base,
            targets=float(np.mean(batch["loss_mask_bt"])),
        ).model_flops  # fmt: skip

    def evaluate(state: TrainState) -> dict[str, float]:
        return task.evaluate(adapter.replace(trainable=state.trainable))

    origin, folder = Origin(config, task.made_from, workdir.path), workdir.path / "checkpoints"
    with (
        Watchdog(config.stall) as watchdog,
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
            number, state, data_state = restored
            task.batches.set_state(data_state)
            console.out(f"resuming after step {number} of {config.steps}")
            if config.optim.cosine_zero == "at_last":
                console.out("the cosine is that of the version that began this run: its last update has rate 0")
        save_config(config, workdir.path)
        state = run_steps(
            config, workdir, program, base.params, task.reference, state, task.batches, checkpoints,
            model_flops, evaluate if task.has_heldout else None, stop_requests, watchdog, console,
        )  # fmt: skip
    stop_requests.end_steps()

    adapter = adapter.replace(trainable=state.trainable)
    prompt_format = {"template": config.data.template, "system": config.data.system}
    for name, each in named_adapters(config, adapter).items():
        path = workdir.path / name
        workdir.check()
        save_adapter(each, path, base=base, prompt_format=prompt_format)
        console.out(f"saved: {path}, {path.stat().st_size:,} bytes")
    if task.has_heldout:
        task.report(adapter, workdir.path / "adapter.safetensors")
    return adapter


def named_adapters(config: TrainConfig, adapter: Adapter) -> dict[str, Adapter]:
    """What is saved under which name: the adapter, or each of a sweep."""
    if config.sweep.num_adapters is None:
        return {"adapter.safetensors": adapter}
    return {f"adapter_{i}.safetensors": unstack_adapter(adapter, i) for i in range(config.sweep.num_adapters)}


def run_steps(
    config: TrainConfig,
    workdir: Workdir,
    program: Program,
    params: Params,
    reference: Adapter | None,
    state: TrainState,
    batches: "grain.DatasetIterator[pipeline.Batch]",
    checkpoints: Checkpoints,
    model_flops: Callable[[pipeline.Batch], float],
    evaluate: Callable[[TrainState], dict[str, float]] | None,
    stop_requests: StopRequests,
    watchdog: Watchdog,
    console: Console,
) -> TrainState:
    """From the state's step to the last, with metrics, held-out losses and checkpoints on the way.

    Raises:
      Stopped: the process was asked to stop, and the step it is at is saved.
      InputError: too many steps in a row were skipped, and the step it is at is saved; or nothing can be written.
    """
    rates = {
        name: optim.learning_rate(dataclasses.replace(config.optim, lr=lr), config.steps)
        for name, lr in logged_rates(config).items()
    }
    first = int(state.step)
    stop_requests.begin_steps()
    with (
        MetricsWriter(workdir.path, resume_step=first) as writer,
        Progress(console, steps=config.steps, first=first) as progress,
    ):
        peak_flops = roofline.peak_flops(device.device_kind for device in params.embed_vd.devices())
        window = Window(peak_flops, rates, optim.updates_made(state.optimizer))
        logged, skipped = first, SkippedSteps(config.nonfinite.max_skipped)
        before: StepMetrics | None = None

        def log(number: int) -> None:
            nonlocal logged
            logged, metrics = number, window.close()
            workdir.check()
            writer.write(number, **metrics)
            progress.log(number, **metrics)

        for number in range(first + 1, config.steps + 1):
            watchdog.waiting_for(f"the batch of step {number}")
            batch = next(batches)
            rows = batch if program.mesh.size == 1 else _on_mesh(batch, program)
            watchdog.waiting_for(f"step {number}", compiles=before is None)
            state, metrics = program.step(state, params, rows, reference)
            # The step is running by now: fetching the one before does not hold it up.
            if before is not None:
                skipped.add(np.asarray(before.skipped))
            before = metrics
            if number == config.steps:
                # No step follows that would count it.
                skipped.add(np.asarray(metrics.skipped))
            if (number - 1) % config.log_every == 0 and number - 1 > logged:
                log(number - 1)
            # Every adapter of a sweep has all rows.
            times = config.sweep.num_adapters or 1
            window.add(metrics, times * int(np.count_nonzero(batch["segment_ids_bt"])), times * model_flops(batch))
            progress.advance(number)
            if evaluate is not None and config.eval_every and number % config.eval_every == 0:
                with window.paused():
                    watchdog.waiting_for(f"the held-out evaluation after step {number}", compiles=True)
                    writer.write(number, **evaluate(state))
            ended = skipped.ended_at(number) or stop_requests.stopped_at(number)
            if number % config.checkpoint.every == 0 or number == config.steps or ended:
                watchdog.waiting_for(f"step {number}")
                if number % config.log_every == 0 or number == config.steps or ended:
                    # Before the checkpoint: a run that is killed in between would not log this step again.
                    log(number)
                watchdog.waiting_for(f"the checkpoint of step {number}")
                checkpoints.save(number, state, batches.get_state())
            if ended:
                checkpoints.wait()
                raise ended
        watchdog.waiting_for("the last checkpoint")
    return state


def logged_rates(config: TrainConfig) -> dict[str, float]:
    """What the schedules begin from, by metric: of a sweep of rates each adapter's, and the first's as the main one."""
    of_sweep = config.sweep.lr
    each = {f"learning_rate_{i}": rate for i, rate in enumerate(of_sweep)}
    return {"learning_rate": of_sweep[0] if of_sweep else config.optim.lr, **each}


def _on_mesh(batch: pipeline.Batch, program: Program) -> pipeline.Batch:
    arrays = cast(Mapping[str, np.ndarray], batch)
    return cast(pipeline.Batch, global_batch(arrays, program.batch_sharding))


if __name__ == "__main__":
    command.run(main, lasting=True)

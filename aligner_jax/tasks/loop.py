"""The loop of a training run: its steps, and what is logged, judged and saved on the way."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, cast

import jax
import numpy as np
from rich.console import Console

from aligner_jax.model.llama import Params
from aligner_jax.objectives.batch import Batch, check
from aligner_jax.objectives.feed import Feed
from aligner_jax.objectives.step import StepMetrics, TrainState
from aligner_jax.objectives.window import Window
from aligner_jax.peft import Adapter
from aligner_jax.runtime import optim, roofline
from aligner_jax.runtime.checkpoint import Checkpoints
from aligner_jax.runtime.config import TrainConfig
from aligner_jax.runtime.global_batch import global_batch
from aligner_jax.runtime.metrics import MetricsWriter
from aligner_jax.runtime.nonfinite import SkippedSteps
from aligner_jax.runtime.preemption import StopRequests
from aligner_jax.runtime.profile import Profile
from aligner_jax.runtime.progress import Progress
from aligner_jax.runtime.watchdog import Watchdog
from aligner_jax.runtime.workdir import Workdir
from aligner_jax.tasks.objectives import objective_of
from aligner_jax.tasks.program import Program
from aligner_jax.tasks.task import row_options


@dataclasses.dataclass(frozen=True)
class Run:
    """A training run that is about to take its steps.

    Attributes:
      program: the step, jitted for the run's mesh.
      params: the frozen base.
      reference: the frozen adapter that the objective compares with in every step; None: none.
      model_flops: model FLOPs of one adapter's step on a batch.
      evaluate: held-out metrics of a state, by name; None where nothing is held out.
    """

    config: TrainConfig
    workdir: Workdir
    program: Program
    params: Params
    reference: Adapter | None
    feed: Feed
    checkpoints: Checkpoints
    model_flops: Callable[[Batch], float]
    evaluate: Callable[[TrainState], dict[str, float]] | None
    stop_requests: StopRequests
    watchdog: Watchdog
    console: Console


def run_steps(run: Run, state: TrainState) -> TrainState:
    """Runs the steps from the state's to the last, with metrics, held-out losses and checkpoints on the way.

    Raises:
      Stopped: the process was asked to stop, and the step it is at is saved.
      InputError: too many steps in a row were skipped, and the step it is at is saved; or nothing can be written; or
        the feed made a batch of another shape than the objective declares.
    """
    config, program, workdir, watchdog = run.config, run.program, run.workdir, run.watchdog
    rates = {
        name: optim.learning_rate(dataclasses.replace(config.optim, lr=lr), config.steps)
        for name, lr in logged_rates(config).items()
    }
    objective, _ = objective_of(config)
    sizes = objective.batch.sizes(**row_options(config.data))
    first, updates = int(state.step), optim.updates_made(state.optimizer)
    reference = jax.device_put(run.reference, program.whole)
    run.stop_requests.begin_steps()
    with (
        MetricsWriter(workdir.path, resume_step=first) as writer,
        Progress(run.console, steps=config.steps, first=first) as progress,
        Profile(config.profile, workdir, run.console, first=first, last=config.steps) as profile,
        jax.transfer_guard("disallow"),
    ):
        peak_flops = roofline.peak_flops(device.device_kind for device in run.params.embed_vd.devices())
        window = Window(peak_flops, rates, updates)
        logged, skipped = first, SkippedSteps(config.nonfinite.max_skipped)
        before: StepMetrics | None = None

        def log(number: int, ended: float | None = None) -> None:
            nonlocal logged
            logged, metrics = number, window.close(ended)
            workdir.check()
            writer.write(number, **metrics)
            progress.log(number, **metrics)

        for number in range(first + 1, config.steps + 1):
            if profile.turns_at(number):
                with window.paused():
                    watchdog.waiting_for(f"the profile before step {number}")
                    profile.turn(number)
            watchdog.waiting_for(f"the batch of step {number}")
            batch = run.feed.next(state)
            check(batch, sizes)
            rows = _on_devices(batch, program)
            watchdog.waiting_for(f"step {number}", compiles=before is None)
            called = time.monotonic()
            with jax.profiler.StepTraceAnnotation("train", step_num=number):
                state, metrics = program.step(state, run.params, rows, reference)
            # Some backends compute within the call: then the steps before had ended when it began.
            at_once = cast(Any, metrics.loss).is_ready()
            # The step is running by now: fetching the one before does not hold it up.
            if before is not None:
                skipped.add(jax.device_get(before.skipped))
            before = metrics
            if (number - 1) % config.log_every == 0 and number - 1 > logged:
                log(number - 1, called if at_once else None)
            # Every adapter of a sweep has all rows.
            times = config.sweep.num_adapters or 1
            window.add(metrics, times * int(np.count_nonzero(batch.segment_ids_bt)), times * run.model_flops(batch))
            if number == config.steps:
                # No step follows that would count it. The window of the steps before is closed: this one's time is its
                # own.
                skipped.add(jax.device_get(metrics.skipped))
            progress.advance(number)
            if run.evaluate is not None and config.eval_every and number % config.eval_every == 0:
                with window.paused():
                    watchdog.waiting_for(f"the held-out evaluation after step {number}", compiles=True)
                    writer.write(number, **run.evaluate(state))
            ended = skipped.ended_at(number) or run.stop_requests.stopped_at(number)
            if number % config.checkpoint.every == 0 or number == config.steps or ended:
                watchdog.waiting_for(f"step {number}")
                if number % config.log_every == 0 or number == config.steps or ended:
                    # Before the checkpoint: a run that is killed in between would not log this step again.
                    log(number)
                watchdog.waiting_for(f"the checkpoint of step {number}")
                run.checkpoints.save(number, state, run.feed.get_state())
            if ended:
                run.checkpoints.wait()
                raise ended
        watchdog.waiting_for("the last checkpoint")
    return state


def logged_rates(config: TrainConfig) -> dict[str, float]:
    """What the schedules begin from, by metric: of a sweep of rates each adapter's, and the first's as the main one."""
    of_sweep = config.sweep.lr
    each = {f"learning_rate_{i}": rate for i, rate in enumerate(of_sweep)}
    return {"learning_rate": of_sweep[0] if of_sweep else config.optim.lr, **each}


def _on_devices(batch: Batch, program: Program) -> Batch:
    return jax.device_put(batch) if program.mesh.size == 1 else global_batch(batch, program.batch_sharding)

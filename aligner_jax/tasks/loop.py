"""Training loop: takes the steps, logs metrics, evaluates and saves checkpoints."""

import contextlib
import dataclasses
import time
from collections.abc import Callable
from typing import Any, cast

import jax
import numpy as np
from jaxtyping import Int
from rich.console import Console

from aligner_jax.model.llama import Params
from aligner_jax.objectives.batch import Batch, check
from aligner_jax.objectives.feed import Feed
from aligner_jax.objectives.step import StepMetrics, TrainState
from aligner_jax.objectives.window import Window
from aligner_jax.peft import Adapter
from aligner_jax.runtime import chips, optim
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
from aligner_jax.tasks.same_step import check_same_step, record_kernels
from aligner_jax.tasks.task import row_options


@dataclasses.dataclass(frozen=True)
class Run:
    """Inputs of the training loop.

    Attributes:
      program: the step, jitted for the run's mesh.
      params: parameters of the frozen base.
      reference: the frozen adapter that the objective compares with in every step, or None.
      writer: takes the metrics.
      model_flops: returns the model FLOPs of one adapter's step on a batch.
      evaluate: returns the held-out metrics of a state, by name; None without held-out examples.
    """

    config: TrainConfig
    workdir: Workdir
    program: Program
    params: Params
    reference: Adapter | None
    feed: Feed
    checkpoints: Checkpoints
    writer: MetricsWriter
    model_flops: Callable[[Batch], float]
    evaluate: Callable[[TrainState], dict[str, float]] | None
    stop_requests: StopRequests
    watchdog: Watchdog
    console: Console


def run_steps(run: Run, state: TrainState) -> TrainState:
    """Takes the remaining steps and returns the final state; logs, evaluates and saves checkpoints on the way.

    Raises:
      Stopped: the process was asked to stop. The current step is saved.
      InputError: too many consecutive steps were skipped (the current step is saved), a file cannot be written, or a
        batch does not have the shapes that the objective declares.
    """
    config, first, updates = run.config, int(state.step), optim.updates_made(state.optimizer)
    # Copied to the devices once, since steps may make no implicit transfer.
    run = dataclasses.replace(run, reference=jax.device_put(run.reference, run.program.replicated))
    run.stop_requests.begin_steps()
    with (
        Progress(run.console, steps=config.steps, first=first) as progress,
        Profile(config.profile, run.workdir, run.console, first=first, last=config.steps) as profile,
        jax.transfer_guard("disallow"),
    ):
        window = _window(run, updates)
        log = _Log(run, window, run.writer, progress, last_step=first)
        take = _Steps(run, progress, SkippedSteps(config.nonfinite.max_skipped, str(run.params.embed_vd.dtype)))
        for step in range(first + 1, config.steps + 1):
            if profile.turns_at(step):
                with window.paused():
                    run.watchdog.waiting_for(f"the profile before step {step}")
                    profile.turn(step)
            batch, (state, metrics), began = take(step, state)
            if (step - 1) % config.log_every == 0 and step - 1 > log.last_step:
                log(step - 1, began)
            # Every adapter of a sweep trains on all rows.
            times = config.sweep.num_adapters or 1
            window.add(metrics, times * int(np.count_nonzero(batch.segment_ids_bt)), times * run.model_flops(batch))
            if step == config.steps:
                # No later step counts the last one. Waiting for it here adds no time to windows already logged.
                take.count_skipped(metrics)
            progress.advance(step)
            if run.evaluate is not None and config.eval_every and step % config.eval_every == 0:
                with window.paused(), progress.doing("held-out evaluation"):
                    run.watchdog.waiting_for(f"the held-out evaluation after step {step}", compiles=True)
                    run.writer.write(step, **run.evaluate(state))
            ended = take.skipped.ended_at(step) or run.stop_requests.stopped_at(step)
            if step % config.checkpoint.every == 0 or step == config.steps or ended:
                run.watchdog.waiting_for(f"step {step}")
                if step % config.log_every == 0 or step == config.steps or ended:
                    # Logged before it is saved: a run killed in between would otherwise never log this step.
                    log(step)
                run.watchdog.waiting_for(f"the checkpoint of step {step}")
                run.checkpoints.save(step, state, run.feed.get_state())
            if ended:
                run.checkpoints.wait()
                raise ended
        run.watchdog.waiting_for("the last checkpoint")
    return state


class _Steps:
    """Takes the steps and counts the skipped ones."""

    def __init__(self, run: Run, progress: Progress, skipped: SkippedSteps) -> None:
        objective, _ = objective_of(run.config)
        self._progress = progress
        self._run, self._sizes = run, objective.batch.sizes(**row_options(run.config.data))
        self._before: StepMetrics | None = None
        self.skipped = skipped

    def __call__(self, step: int, state: TrainState) -> tuple[Batch, tuple[TrainState, StepMetrics], float | None]:
        """Takes a step; returns its batch, its result, and the end time of the previous steps (None if they run)."""
        run = self._run
        run.watchdog.waiting_for(f"the batch of step {step}")
        batch = run.feed.next(state)
        check(batch, self._sizes)
        rows = _on_devices(batch, run.program)
        run.watchdog.waiting_for(f"step {step}", compiles=self._before is None)
        called = time.monotonic()
        compiling = contextlib.nullcontext()
        if self._before is None:
            check_same_step(run.program, (state, run.params, rows, run.reference))
            called, compiling = time.monotonic(), self._progress.doing("compiling the step", told=True)
        with compiling, jax.profiler.StepTraceAnnotation("train", step_num=step):
            state, metrics = run.program.step(state, run.params, rows, run.reference)
        if self._before is None:
            record_kernels(run.workdir, run.console)
        # Some backends compute within the call, so the previous steps had ended when it began.
        at_once = cast(Any, metrics.loss).is_ready()
        # This step is dispatched by now, so fetching metrics of the previous one does not delay it.
        if self._before is not None:
            self.count_skipped(self._before)
        self._before = metrics
        return batch, (state, metrics), called if at_once else None

    def count_skipped(self, metrics: StepMetrics) -> None:
        """Waits for a step and counts it if it was skipped."""
        self.skipped.add(jax.device_get(metrics.skipped))


@dataclasses.dataclass
class _Log:
    """Logs the metrics of a window of steps; `last_step` is the last logged step."""

    run: Run
    window: Window
    writer: MetricsWriter
    progress: Progress
    last_step: int

    def __call__(self, step: int, ended: float | None = None) -> None:
        """Logs the window that ends at `step`; for `ended` see `Window.close`."""
        self.last_step, metrics = step, self.window.close(ended)
        self.run.workdir.check()
        self.writer.write(step, **metrics)
        self.progress.log(step, **metrics)


def _window(run: Run, updates: Int[np.ndarray, "*a"]) -> Window:
    rates = {
        name: optim.learning_rate(dataclasses.replace(run.config.optim, lr=lr), run.config.steps)
        for name, lr in logged_rates(run.config).items()
    }
    peak_flops = chips.peak_flops(device.device_kind for device in run.params.embed_vd.devices())
    return Window(peak_flops, rates, updates)


def logged_rates(config: TrainConfig) -> dict[str, float]:
    """Returns the base learning rates by metric name: `learning_rate`, and `learning_rate_i` for a sweep of rates.

    In a sweep of rates, `learning_rate` is that of adapter 0.
    """
    of_sweep = config.sweep.lr
    each = {f"learning_rate_{i}": rate for i, rate in enumerate(of_sweep)}
    return {"learning_rate": of_sweep[0] if of_sweep else config.optim.lr, **each}


def _on_devices(batch: Batch, program: Program) -> Batch:
    return jax.device_put(batch) if program.mesh.size == 1 else global_batch(batch, program.batch_sharding)

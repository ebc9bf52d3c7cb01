"""Metrics of the steps between two lines of a run's metrics."""

import contextlib
import math
import time
from collections.abc import Iterator, Mapping

import jax
import numpy as np
import optax
from jaxtyping import Int

from aligner_jax.objectives.step import StepMetrics
from aligner_jax.runtime.global_batch import replicate


class Window:
    """The steps since the last line of metrics."""

    def __init__(
        self, peak_flops: float | None, rates: Mapping[str, optax.Schedule], updates: Int[np.ndarray, "*a"]
    ) -> None:
        """Begins without steps.

        Args:
          peak_flops: peak FLOPs per second of all devices together; None if not known.
          rates: schedules by metric. In a sweep, `learning_rate_i` is adapter i's, and `learning_rate` adapter 0's.
          updates: number of updates that the optimizer has made, from `optim.updates_made`.
        """
        self._began = time.monotonic()
        self._steps: list[StepMetrics] = []
        self._tokens, self._model_flops = 0, 0.0
        self._peak_flops, self._rates, self._updates = peak_flops, rates, updates
        self._rates_at = jax.jit(lambda counts: {name: rate(counts[name]) for name, rate in rates.items()})

    def add(self, metrics: StepMetrics, tokens: int, model_flops: float) -> None:
        """Adds a step.

        Args:
          metrics: metrics of the step.
          tokens: number of tokens in its batch, without padding.
          model_flops: model FLOPs of its rows, with padding.
        """
        self._steps.append(metrics)
        self._tokens += tokens
        self._model_flops += model_flops

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes the time of the work inside the context, which is not part of the steps."""
        jax.block_until_ready(self._steps)
        paused = time.monotonic()
        yield
        self._began += time.monotonic() - paused

    def close(self, ended: float | None = None) -> dict[str, float]:
        """Returns the metrics of the steps, and begins a new window.

        Args:
          ended: end of the last step in seconds of `time.monotonic`; None waits for the step and reads the clock.

        Returns:
          Metrics by name. Loss, gradient norm and the objective's metrics are means over the steps that were not
          skipped; in a sweep, means over the adapters too, with loss_i for adapter i. "skipped" is the number of
          skipped steps. "step_seconds" is the mean time of a step, and "tokens_per_second" excludes padding. Learning
          rates are those of the last step, at the optimizer's own count, which a skipped step does not change. On known
          chips, "mfu" is model FLOPs per second (padding included) divided by the peak.
        """
        steps = jax.device_get(self._steps)
        now = time.monotonic() if ended is None else ended
        taken = ~np.stack([metrics.skipped for metrics in steps])
        numbers = [metrics.as_dict() for metrics in steps]
        by_name = {name: np.stack([each[name] for each in numbers]) for name in numbers[0]}
        means = {name: _mean(values, taken) for name, values in by_name.items()}
        for i in range(taken.shape[1] if taken.ndim > 1 else 0):
            means[f"loss_{i}"] = _mean(by_name["loss"][:, i], taken[:, i])
        means["skipped"] = int(np.sum(~taken))
        means["step_seconds"] = (now - self._began) / len(steps)
        means["tokens_per_second"] = self._tokens / (now - self._began)
        if self._peak_flops is not None:
            means["mfu"] = self._model_flops / (now - self._began) / self._peak_flops
        before_last = np.atleast_1d(self._updates + taken[:-1].sum(0))
        counts = {name: before_last[_adapter_of(name)] for name in self._rates}
        rates = jax.device_get(self._rates_at(replicate(counts)))
        means |= {name: float(rate) for name, rate in rates.items()}
        self._updates = self._updates + taken.sum(0)
        self._began, self._steps, self._tokens, self._model_flops = now, [], 0, 0.0
        return means


def _adapter_of(name: str) -> int:
    return int(name.removeprefix("learning_rate").removeprefix("_") or 0)


def _mean(values: np.ndarray, taken: np.ndarray) -> float:
    return float(np.mean(values[taken])) if taken.any() else math.nan

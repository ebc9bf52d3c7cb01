"""Decides when a training run ends: when its held-out loss is near its extrapolated end, or when its budget is used.

A run has a constant rate until one of the two, then a rate that falls to 0, and its length need not be known before.
The held-out loss is measured at steps that grow by a constant factor. A loss that falls to its end as a power of the
steps gains less from point to point by a constant factor too, and the sum of this geometric series is what is still to
come.
"""

import dataclasses
import itertools
import math
from typing import Literal

MOST_RATIO = 0.9
"""Largest ratio of successive gains that is extrapolated. At 1 the series would have no end."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """Rule by which a run ends.

    Attributes:
      budget: steps of a run at most.
      tolerance: share of the held-out loss; a run has converged if at two successive measurements less than that is
        still to come, or if its loss rises twice.
      first: step of the first measurement.
      growth: factor between the steps of measurements.
      decay: share of the run's steps in which the rate falls.
      warmup: steps in which the rate rises.
    """

    budget: int = 256
    tolerance: float = 0.005
    first: int = 12
    growth: float = 1.5
    decay: float = 0.25
    warmup: int = 4


@dataclasses.dataclass(frozen=True)
class Point:
    """Held-out loss, in nats per target token, after a number of steps."""

    step: int
    loss: float


End = Literal["converged", "budget", "diverged"]


class Course:
    """Course of a run: the steps of its measurements, its rate, and its end.

    Attributes:
      points: measurements so far; the first is that of the base at step 0.
      end: reason for the end, once the rate falls; None before.
    """

    def __init__(self, rule: Rule, base_loss: float) -> None:
        self._rule = rule
        self.points = [Point(0, base_loss)]
        self.end: End | None = None
        self._apart: list[float] = []
        self._near = 0
        self._decay_from = self._last = 0
        self.next_point = min(rule.first, _constant(rule.budget, rule))

    @property
    def is_over(self) -> bool:
        """True after the last measurement."""
        return self.end is not None and self.points[-1].step >= self._last

    def rate(self, step: int) -> float:
        """Returns the rate of the update after `step` steps, relative to the run's rate: from 0 to 1."""
        factor = min(1.0, (step + 1) / max(self._rule.warmup, 1))
        if self.end is not None:
            factor *= max(0.0, (self._last - step) / (self._last - self._decay_from))
        return factor

    def measured(self, loss: float) -> None:
        """Takes the held-out loss after `next_point` steps, and decides how to go on."""
        step = self.next_point
        self.points.append(Point(step, loss))
        if self.is_over:
            return
        if not math.isfinite(loss):
            self.end, self._last = "diverged", step
            return
        constant = _constant(self._rule.budget, self._rule)
        # The last point before the decay may be close to the one before, which says nothing of what is still to come.
        before = self.points[-2].step
        if before == 0 or step >= self._following(before):
            self._apart.append(loss)
            left = still_to_come(self._apart)
            # One small gain may be noise; two rises are past the best.
            self._near = self._near + 1 if left <= self._rule.tolerance * loss else 0
            if self._near == 2 or left == 0:
                self.end = "converged"
        if self.end is None and step >= constant:
            self.end = "budget"
        if self.end is None:
            self.next_point = min(self._following(step), constant)
            return
        self._decay_from = step
        self._last = self.next_point = min(self._rule.budget, step + max(1, round(step * self._ratio)))

    def _following(self, step: int) -> int:
        """Returns the step of the point after one at `step`."""
        return max(step + 1, round(step * self._rule.growth))

    @property
    def _ratio(self) -> float:
        return self._rule.decay / (1 - self._rule.decay)


def still_to_come(losses: list[float]) -> float:
    """Returns by how much a loss would still fall if its gains went on shrinking as they have.

    It is 0 after two rises, and infinite, which is unknown, after a single one, which may be noise.

    Args:
      losses: losses at steps that grow by a constant factor. Fewer than four say nothing, and the result is infinite.
    """
    if len(losses) < 4:
        return math.inf
    *_, first, second, third = (before - after for before, after in itertools.pairwise(losses))
    if third <= 0:
        return 0.0 if second <= 0 else math.inf
    ratio = min(MOST_RATIO, math.sqrt(third / first)) if first > 0 else MOST_RATIO
    return third * ratio / (1 - ratio)


def _constant(budget: int, rule: Rule) -> int:
    """Returns the last step of the constant rate for a run of `budget` steps."""
    return max(1, round(budget * (1 - rule.decay)))

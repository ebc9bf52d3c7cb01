"""Trains many runs of one arm, some at once, each until its course is over."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence

from aligner_jax.model.llama import Params
from aligner_jax.objectives.batch import Batch
from aligner_jax.peft import Adapter
from aligner_jax.studies.steps import Steps
from aligner_jax.studies.stopping import Course, Rule


@dataclasses.dataclass(frozen=True)
class Wanted:
    """A run to train.

    Attributes:
      name: name of the run.
      rate: learning rate.
      first: returns the initial adapter.
      batches: returns an endless iterator of training batches, all of one shape.
      loss_of: returns an adapter's held-out loss, which ends the run and by which rates are compared.
      base_loss: held-out loss of the base, or of the reference.
      reference: frozen adapter that the loss compares with, if any.
    """

    name: str
    rate: float
    first: Callable[[], Adapter]
    batches: Callable[[], Iterator[Batch]]
    loss_of: Callable[[Adapter], float]
    base_loss: float
    reference: Adapter | None = None


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A run that has ended.

    Attributes:
      wanted: the run.
      adapter: the adapter with the least held-out loss of all points, which is the last one unless the loss rose.
      course: its course.
      kept: step of the adapter.
      loss: held-out loss of the adapter.
      seconds: time between the run's begin and end; runs that are trained at once share it.
    """

    wanted: Wanted
    adapter: Adapter
    course: Course
    kept: int
    loss: float
    seconds: float


class _Run:
    def __init__(self, wanted: Wanted, rule: Rule) -> None:
        self.wanted, self.step, self.began = wanted, 0, time.monotonic()
        self.course = Course(rule, wanted.base_loss)
        self.batches = wanted.batches()
        self._best: tuple[float, int, Adapter] | None = None

    @property
    def rate(self) -> float:
        return self.wanted.rate * self.course.rate(self.step)

    def measure(self, adapter: Adapter) -> None:
        loss = self.wanted.loss_of(adapter)
        self.course.measured(loss)
        # A loss that is no number is not less than any.
        if self._best is None or loss < self._best[0]:
            self._best = (loss, self.step, adapter)

    def fitted(self) -> Fitted:
        assert self._best is not None
        loss, kept, adapter = self._best
        return Fitted(self.wanted, adapter, self.course, kept, loss, time.monotonic() - self.began)


def fit(
    wanted: Sequence[Wanted],
    steps: Steps,
    params: Params,
    rule: Rule,
    may_begin: Callable[[Wanted], bool] = lambda _: True,
) -> Iterator[Fitted]:
    """Yields runs as they end.

    Args:
      wanted: runs of one arm, in the order in which they begin. Each takes a place that has become free.
      steps: the arm's step.
      params: parameters of the base.
      rule: rule by which runs end.
      may_begin: called before a run begins; a run for which it returns False is left out.
    """
    left = iter(wanted)
    running: dict[int, _Run] = {}

    def begin(index: int) -> None:
        for each in left:
            if may_begin(each):
                running[index] = _Run(each, rule)
                steps.place(index, each.first(), each.reference)
                return

    for index in range(steps.together):
        begin(index)
    while running:
        batches = {index: next(run.batches) for index, run in running.items()}
        # A place without a run has the rows of another one, and rate 0.
        spare = next(iter(batches.values()))
        places = range(steps.together)
        steps(
            params,
            [batches.get(place, spare) for place in places],
            [running[place].rate if place in running else 0.0 for place in places],
        )
        for index, run in list(running.items()):
            run.step += 1
            if run.step == run.course.next_point:
                run.measure(steps.adapter(index))
            if run.course.is_over:
                del running[index]
                yield run.fitted()
                begin(index)

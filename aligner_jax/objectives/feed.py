"""Feeds: where the batches of a run come from."""

from typing import Any, Protocol

import grain

from aligner_jax.objectives.batch import Batch
from aligner_jax.objectives.step import TrainState


class Feed(Protocol):
    """Makes the batch of each step, and may look at the policy for it, as reinforcement learning does."""

    def next(self, state: TrainState) -> Batch:
        """Returns the next step's batch, of NumPy arrays.

        Args:
          state: of the run before that step. The step donates its arrays, so a feed keeps copies of them alone.
        """
        ...

    def get_state(self) -> dict[str, Any]:
        """Returns the position of the feed, as JSON can hold it. Checkpoints have it beside the run's state."""
        ...

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on from a position: with the same policies, the same batches follow bit for bit."""
        ...


class DataFeed:
    """The batches of an iterator of `data`, whatever the policy."""

    def __init__(self, batches: "grain.DatasetIterator[Any]") -> None:
        self._batches = batches

    def next(self, state: TrainState) -> Batch:
        return next(self._batches)

    def get_state(self) -> dict[str, Any]:
        return self._batches.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        self._batches.set_state(state)

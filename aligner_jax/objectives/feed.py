"""Feeds, the sources of a run's batches."""

from typing import Any, Protocol

import grain

from aligner_jax.objectives.batch import Batch
from aligner_jax.objectives.step import TrainState


class Feed(Protocol):
    """Source of the batch of each step, which may depend on the policy, as in reinforcement learning."""

    def next(self, state: TrainState) -> Batch:
        """Returns the next step's batch of NumPy arrays.

        Args:
          state: state before that step. The step donates its arrays, so a feed must copy those that it keeps.
        """
        ...

    def get_state(self) -> dict[str, Any]:
        """Returns the position of the feed as JSON values. Checkpoints store it beside the run's state."""
        ...

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores a position. With the same policies, the batches that follow are bit-identical."""
        ...


class DataFeed:
    """Feed of an iterator of `data`; it does not depend on the policy."""

    def __init__(self, batches: "grain.DatasetIterator[Any]") -> None:
        self._batches = batches

    def next(self, state: TrainState) -> Batch:
        return next(self._batches)

    def get_state(self) -> dict[str, Any]:
        return self._batches.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        self._batches.set_state(state)

"""What is not finite: how JSON holds it, and how many steps in a row may be skipped for it."""

import math
from typing import Any

import numpy as np
from jaxtyping import Bool

from aligner_jax.errors import InputError


def finite_or_none(value: Any) -> Any:
    """The same of dicts, lists and plain values, where a number that is not finite is None: JSON has a null only."""
    if isinstance(value, dict):
        return {name: finite_or_none(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_none(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class SkippedSteps:
    """Counts the skipped steps in a row; of many adapters, each one's own."""

    def __init__(self, max_skipped: int) -> None:
        """Too many are `max_skipped`."""
        self._max_skipped = max_skipped
        self._in_a_row: np.ndarray | int = 0

    def add(self, skipped: Bool[np.ndarray, "*a"]) -> None:
        """Counts the next step."""
        self._in_a_row = np.where(skipped, self._in_a_row + 1, 0)

    def ended_at(self, step: int) -> InputError | None:
        """What ends the run after this step, once its state is saved, which the skipped steps left as it was.

        None while something is trained: one adapter of many may stand still while others learn.
        """
        in_a_row = int(np.min(self._in_a_row))
        if in_a_row < self._max_skipped:
            return None
        return InputError(
            f"the loss or its gradient was not finite in {in_a_row} steps in a row (config.nonfinite.max_skipped is "
            f"{self._max_skipped}), so the run ends at step {step}, where what it had learned before them is saved; "
            "lower config.optim.lr, or look at the data"
        )

"""Steps skipped because their loss or gradient was not finite: how many in a row are too many."""

import numpy as np
from jaxtyping import Bool

from aligner_jax.errors import InputError


class SkippedSteps:
    """Counts the skipped steps in a row; of many adapters, each one's own."""

    def __init__(self, max_skipped: int) -> None:
        """Too many are `max_skipped`."""
        self._max_skipped = max_skipped
        self._in_a_row: np.ndarray | int = 0

    def add(self, skipped: Bool[np.ndarray, "*a"]) -> None:
        """Counts the next step."""
        self._in_a_row = np.where(skipped, self._in_a_row + 1, 0)

    @property
    def too_many(self) -> bool:
        """Whether nothing is trained any more. One adapter of many may stand still while others learn."""
        return int(np.min(self._in_a_row)) >= self._max_skipped

    def error(self, step: int) -> InputError:
        """What ends the run; its state, which the skipped steps left as it was, is saved at `step`."""
        return InputError(
            f"the loss or its gradient was not finite in {int(np.min(self._in_a_row))} steps in a row "
            f"(config.nonfinite.max_skipped is {self._max_skipped}), so the run ends at step {step}, where what it had "
            "learned before them is saved; lower config.optim.lr, or look at the data"
        )

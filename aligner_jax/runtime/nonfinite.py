"""Non-finite values: as null in JSON, and a limit on consecutive skipped steps."""

import math
from typing import Any

import numpy as np
from jaxtyping import Bool

from aligner_jax.errors import InputError


def finite_or_none(value: Any) -> Any:
    """Returns dicts, lists and plain values with None in place of non-finite numbers, which JSON cannot hold."""
    if isinstance(value, dict):
        return {name: finite_or_none(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_none(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class SkippedSteps:
    """Counts consecutive skipped steps, separately for the adapters of a sweep."""

    def __init__(self, max_skipped: int, dtype: str = "float32") -> None:
        """Starts the count.

        Args:
          max_skipped: the run ends after this many consecutive skipped steps.
          dtype: dtype of the computation; float16 overflows where others do not.
        """
        self._max_skipped, self._dtype = max_skipped, dtype
        self._in_a_row: np.ndarray | int = 0

    def add(self, skipped: Bool[np.ndarray, "*a"]) -> None:
        """Counts the next step; `skipped` holds one value per adapter."""
        self._in_a_row = np.where(skipped, self._in_a_row + 1, 0)

    def ended_at(self, step: int) -> InputError | None:
        """Returns the error that ends the run after this step, or None. The caller saves the state and raises it.

        Skipped steps leave the state unchanged. In a sweep the run ends only if all adapters have reached the limit.
        """
        in_a_row = int(np.min(self._in_a_row))
        if in_a_row < self._max_skipped:
            return None
        overflows = self._dtype == "float16"
        remedy = "float16 may have overflowed, so take config.base.dtype=float32, " if overflows else ""
        return InputError(
            f"the loss or its gradient was not finite in {in_a_row} steps in a row (config.nonfinite.max_skipped is "
            f"{self._max_skipped}), so the run ends at step {step}, where what it had learned before them is saved; "
            f"{remedy}lower config.optim.lr, or look at the data"
        )

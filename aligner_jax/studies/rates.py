"""Searches an arm's learning rate: a grid that is extended until its best rate is inside."""

import math
from collections.abc import Mapping

FACTOR = 3.0
"""Ratio of neighbouring rates."""
MOST = 7
"""Rates that are tried at most."""


def first_rates(middle: float) -> list[float]:
    """Returns the rates that are tried first."""
    return [_rounded(middle / FACTOR), _rounded(middle), _rounded(middle * FACTOR)]


def next_rate(losses: Mapping[float, float]) -> float | None:
    """Returns the rate to try next, beyond the best one of those tried; None if the best one is inside.

    Args:
      losses: held-out losses by rate. A loss that is not finite is worse than any other; if none is finite, smaller
        rates are tried.
    """
    best = best_rate(losses)
    if len(losses) >= MOST:
        return None
    if best is None:
        return _rounded(min(losses) / FACTOR)
    if best == min(losses):
        return _rounded(best / FACTOR)
    return _rounded(best * FACTOR) if best == max(losses) else None


def best_rate(losses: Mapping[float, float]) -> float | None:
    """Returns the rate with the least loss; None if no loss is finite."""
    finite = {rate: loss for rate, loss in losses.items() if math.isfinite(loss)}
    return min(finite, key=finite.__getitem__) if finite else None


def is_inside(losses: Mapping[float, float]) -> bool:
    """Returns True if the best rate has worse ones on both sides."""
    best = best_rate(losses)
    return best is not None and min(losses) < best < max(losses)


def _rounded(rate: float) -> float:
    # Three digits, so that a grid extended from either side has equal rates.
    return float(f"{rate:.3g}")

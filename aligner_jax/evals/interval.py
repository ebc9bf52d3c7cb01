"""How sure a share of so many is."""

import math


def wilson_interval(successes: float, trials: int, *, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a proportion (JASA 22, 1927), by default for 95 % confidence.

    It stays within 0 and 1, and is of use for few trials and for shares near the ends.

    Args:
      successes: may be fractional, where ties count as a half.
      trials: how many.
      z: quantile of the normal distribution.

    Raises:
      ValueError: there are no trials, or more successes than trials.
    """
    if not 0 <= successes <= trials or not trials:
        raise ValueError(f"{successes} of {trials} is not a share")
    share, spread = successes / trials, z * z / trials
    middle = share + spread / 2
    half = z * math.sqrt(share * (1 - share) / trials + spread / (4 * trials))
    low, high = (middle - half) / (1 + spread), (middle + half) / (1 + spread)
    return max(low, 0.0), min(high, 1.0)

"""Confidence intervals of proportions."""

import math

import numpy as np
from jaxtyping import Float, Int

_Z = 1.959964


def wilson_interval(successes: float, trials: float, *, z: float = _Z) -> tuple[float, float]:
    """Returns Wilson's score interval of a proportion (JASA 22, 1927), by default for 95 % confidence.

    The interval lies within 0 and 1, and is valid for few trials and for proportions near 0 and 1.

    Args:
      successes: number of successes; fractional if ties count as a half.
      trials: number of trials; fractional if it is an effective number of dependent trials.
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


def grouped_interval(
    value_n: Float[np.ndarray, " n"], group_n: Int[np.ndarray, " n"], *, more_variance: float = 0.0
) -> tuple[float, float]:
    """Returns the 95 % interval of a mean over grouped values, such as answers to the same prompt.

    The groups are the sample. The interval is Wilson's with an effective number of trials: the number of independent
    trials that would have the variance seen between groups, at most the number of values (Korn and Graubard, Survey
    Methodology 24, 1998). For few groups it is multiplied by the squared ratio of the normal quantile to Student's. If
    the groups show no variance, a group counts as one trial.

    Args:
      value_n: values from 0 to 1; values between are averages of several judgements.
      group_n: group of each value.
      more_variance: variance of the mean from another source than the groups, such as seeds; it is added.

    Raises:
      ValueError: there are no values, or a value is not from 0 to 1.
    """
    n = len(value_n)
    if not n or not np.all((value_n >= 0) & (value_n <= 1)):
        raise ValueError("shares from 0 to 1 are needed, one at least")
    share = float(np.mean(value_n))
    members_g = np.unique(group_n, return_inverse=True)[1]
    deviation_g = np.bincount(members_g, value_n - share)
    groups = len(deviation_g)
    trials = float(groups)
    between = groups / (groups - 1) * float(np.sum(deviation_g**2)) / n**2 if groups > 1 else 0.0
    if (variance := between + more_variance) > 0 and groups > 1:
        # Imported here since SciPy takes a tenth of the time in which a command starts.
        from scipy.special import stdtrit

        few = (_Z / float(stdtrit(groups - 1, 0.975))) ** 2
        trials = min(share * (1 - share) / variance * few, float(n))
    return wilson_interval(share * trials, trials)

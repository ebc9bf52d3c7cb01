"""Means over seeds and held-out examples, with their confidence intervals.

Seeds and held-out examples are both samples: other seeds and other examples would give other means. The variance of the
mean over both is the sum of two variances: over the seeds, of their means over all examples, and over the examples, of
their means over all seeds. The sum counts the interaction of seed and example twice, so the intervals are
conservative. They are Student's, with Satterthwaite's degrees of freedom, and are wide for three seeds, as they should.
"""

import dataclasses
import math

import numpy as np
from jaxtyping import Float
from scipy import stats

from aligner_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A value with its 95 % confidence interval."""

    value: float
    low: float
    high: float


def ratio(part_sn: Float[np.ndarray, "s n"], whole_sn: Float[np.ndarray, "s n"]) -> Estimate:
    """Returns the sum of `part_sn` divided by the sum of `whole_sn`, with its 95 % interval.

    The variance is linearized as for a ratio of totals of a survey (Cochran, Sampling Techniques, chapter 6). With one
    seed the interval covers only the variance over the examples.

    Args:
      part_sn: numerators of s seeds and n examples.
      whole_sn: denominators.

    Raises:
      InputError: there are fewer than two examples.
    """
    s, n = part_sn.shape
    if n < 2:
        raise InputError(f"held-out examples that are short enough: {n}, and an interval needs 2; raise --heldout")
    value = part_sn.sum() / whole_sn.sum()
    residual_sn, size = part_sn - value * whole_sn, whole_sn.sum() / s
    of_examples = n / (n - 1) * float(np.sum(np.mean(residual_sn, axis=0) ** 2)) / size**2
    of_seeds = float(np.sum(np.sum(residual_sn, axis=1) ** 2)) / (s * (s - 1)) / size**2 if s > 1 else 0.0
    variance = of_examples + of_seeds
    half = 0.0
    if variance > 0:
        freedom = variance**2 / (of_examples**2 / (n - 1) + (of_seeds**2 / (s - 1) if s > 1 else 0.0))
        half = float(stats.t.ppf(0.975, freedom)) * math.sqrt(variance)
    return Estimate(float(value), float(value - half), float(value + half))

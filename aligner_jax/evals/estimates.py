"""Means over seeds and held-out examples, with their intervals.

Seeds and held-out examples are both a sample: other seeds and other examples would give other numbers. So the variance
of a mean over both is that over the seeds (each seed's mean over all examples) plus that over the examples (each one's
mean over all seeds), which counts what belongs to a seed and an example together twice and errs on the wide side.
Intervals are Student's, with as many degrees of freedom as Satterthwaite gives; of three seeds they are wide, as they
should be.
"""

import dataclasses
import math

import numpy as np
from jaxtyping import Float
from scipy import stats

from aligner_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float


def ratio(part_sn: Float[np.ndarray, "s n"], whole_sn: Float[np.ndarray, "s n"]) -> Estimate:
    """The sum of the one over the sum of the other, over s seeds and n examples, with its 95 % interval.

    Linearized, as a survey's ratio of totals is (Cochran, Sampling Techniques, chapter 6). Of a single seed the
    interval is over the examples alone.

    Raises:
      InputError: fewer than two examples.
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

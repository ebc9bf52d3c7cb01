"""Trained parameters with which arms of one kind reach a share of the reference's success."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from aligner_jax.studies.outcomes import Outcomes

_RESAMPLES, _SEED = 1000, 0


@dataclasses.dataclass(frozen=True)
class Needed:
    """Number of parameters; infinite where no arm reaches the share.

    Attributes:
      value: number, interpolated.
      low, high: 95 % interval, by a bootstrap over questions and seeds.
      least: parameters of the smallest arm. A value or bound that equals it says "at most".
    """

    value: float
    low: float
    high: float
    least: int

    def __str__(self) -> str:
        return f"{self._text(self.value)} [{self._text(self.low)}, {self._text(self.high)}]"

    def _text(self, number: float) -> str:
        if math.isinf(number):
            return "not reached"
        return f"≤ {self.least:,}" if number <= self.least else f"{number:,.0f}"


def needed(share: float, arms: Sequence[tuple[int, Outcomes]], reference: Outcomes) -> Needed | None:
    """Returns the parameters with which a share of the reference's success is reached; None if it has no success.

    Args:
      share: share of the reference's success, from 0 to 1.
      arms: parameters and outcomes of arms of one kind, by number of parameters.
      reference: outcomes of the reference, for the same seeds and prompts.
    """
    if not reference.right_sn.any():
        return None
    parameters = [number for number, _ in arms]
    right_asq = np.stack([outcomes.by_question() for _, outcomes in arms])
    whole_sq = reference.by_question()
    rng, found = np.random.default_rng(_SEED), []
    seeds, questions = whole_sq.shape
    for _ in range(_RESAMPLES):
        pick = np.ix_(rng.integers(seeds, size=seeds), rng.integers(questions, size=questions))
        if whole_sq[pick].any():
            found.append(crossing(share, parameters, [float(x[pick].sum() / whole_sq[pick].sum()) for x in right_asq]))
    value = crossing(share, parameters, [float(x.sum() / whole_sq.sum()) for x in right_asq])
    # Order statistics, since an infinite number cannot be interpolated.
    low, high = (np.quantile(found, q, method="nearest") for q in (0.025, 0.975))
    return Needed(value, float(low), float(high), parameters[0])


def crossing(share: float, parameters: Sequence[int], shares: Float[np.ndarray, " a"] | Sequence[float]) -> float:
    """Returns the number of parameters at which a share is first reached, infinity if it is not.

    It is interpolated along the logarithm of the number between the first arm that reaches the share and the one
    before.

    Args:
      share: share to reach.
      parameters: numbers of parameters of the arms, rising.
      shares: shares of the arms.
    """
    for i, reached in enumerate(shares):
        if reached >= share:
            if i == 0:
                return float(parameters[0])
            part = (share - shares[i - 1]) / (reached - shares[i - 1])
            low, high = math.log(parameters[i - 1]), math.log(parameters[i])
            return math.exp(low + part * (high - low))
    return math.inf

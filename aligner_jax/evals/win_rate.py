"""How often one model's answers are preferred to another's, and how sure that is."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np

Preferred = Literal["first", "second", "neither"]
"""A judge's verdict on two answers, by the order in which they were shown."""

Outcome = Literal["win", "loss", "tie", "unparsable"]
"""What became of a question, for the model whose rate it is; unparsable: the judge gave no verdict."""

_POINTS_3 = np.array([1.0, 0.5, 0.0])


@dataclasses.dataclass(frozen=True)
class WinRate:
    """Counts of questions, and the adjusted win rate.

    Attributes:
      unparsable: questions without a verdict, which are none of the other three.
      rate: (wins + ties / 2) / (wins + losses + ties); None where no question has a verdict.
      interval: of `rate`, 95 % confidence, by the bootstrap over questions.
    """

    wins: int
    losses: int
    ties: int
    unparsable: int
    rate: float | None
    interval: tuple[float, float] | None


def of_both_orders(shown_first: Preferred | None, shown_second: Preferred | None) -> Outcome:
    """What two verdicts on one question, each with the answers in another order, say of a model.

    It wins or loses where both say so. Where they differ it is a tie: the order decided (Zheng et al., Judging
    LLM-as-a-Judge, arXiv 2306.05685, section 3.4).

    Args:
      shown_first: the verdict where the model's answer was shown first; None: it could not be read.
      shown_second: the one where it was shown second.
    """
    if shown_first is None or shown_second is None:
        return "unparsable"
    if (shown_first, shown_second) == ("first", "second"):
        return "win"
    return "loss" if (shown_first, shown_second) == ("second", "first") else "tie"


def win_rate(
    outcomes: Sequence[Outcome], *, unparsable_as: Literal["apart", "tie"] = "apart", seed: int = 0
) -> WinRate:
    """Counts, rate and interval of a model's outcomes.

    Args:
      unparsable_as: "apart": questions without a verdict are left out of the rate; "tie": they count as ties. They
        are reported as unparsable either way, and of ties only those are that a judge gave.
      seed: of the bootstrap.
    """
    wins, losses, ties, unparsable = (outcomes.count(kind) for kind in ("win", "loss", "tie", "unparsable"))
    return of_counts(wins, losses, ties, unparsable, unparsable_as=unparsable_as, seed=seed)


def of_counts(
    wins: int,
    losses: int,
    ties: int,
    unparsable: int = 0,
    *,
    unparsable_as: Literal["apart", "tie"] = "apart",
    seed: int = 0,
) -> WinRate:
    """`win_rate` of counts, of which a published table gives no more."""
    halves = ties + (unparsable if unparsable_as == "tie" else 0)
    judged = wins + losses + halves
    rate = (wins + halves / 2) / judged if judged else None
    interval = bootstrap_interval(wins, losses, halves, seed=seed) if judged else None
    return WinRate(wins, losses, ties, unparsable, rate, interval)


def bootstrap_interval(
    wins: int, losses: int, ties: int, *, seed: int = 0, draws: int = 10_000, confidence: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of the adjusted win rate over `draws` resamples of the questions (Efron 1979).

    It has no width where all questions ended alike. The same seed gives the same interval.

    Raises:
      ValueError: there are no questions.
    """
    counts_3 = np.array([wins, ties, losses])
    questions = int(counts_3.sum())
    if not questions or counts_3.min() < 0:
        raise ValueError(f"{wins} wins, {losses} losses and {ties} ties have no rate")
    # The rate depends on the counts alone, and those of a resample with replacement are multinomial.
    drawn_3 = np.random.default_rng(seed).multinomial(questions, counts_3 / questions, size=draws)
    low, high = np.quantile(drawn_3 @ _POINTS_3 / questions, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)

"""Win rate of one model's answers against another's, with its confidence interval."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np

Verdict = Literal["first", "second", "neither"]
"""A judge's verdict on two answers: the answer shown first is better, the one shown second, or neither."""

Outcome = Literal["win", "loss", "tie", "unparsable"]
"""Outcome of a question for the model whose win rate is computed. "unparsable" means that a verdict is missing."""

_POINTS_3 = np.array([1.0, 0.5, 0.0])


@dataclasses.dataclass(frozen=True)
class WinRate:
    """Counts of questions, and the adjusted win rate.

    Attributes:
      wins, losses, ties: questions with these outcomes.
      unparsable: questions without a verdict, which are not among the other three.
      rate: (wins + ties / 2) / (wins + losses + ties); None if no question counts.
      interval: 95 % interval of the rate, by the bootstrap over questions; None if the rate is.
    """

    wins: int
    losses: int
    ties: int
    unparsable: int
    rate: float | None
    interval: tuple[float, float] | None


def of_both_orders(shown_first: Verdict | None, shown_second: Verdict | None) -> Outcome:
    """Returns a model's outcome from two verdicts on one question, with the answers in both orders.

    The model wins or loses only if both verdicts say so. If they disagree, the order decided, and the outcome is a tie
    (Zheng et al., Judging LLM-as-a-Judge, arXiv 2306.05685, section 3.4).

    Args:
      shown_first: verdict with the model's answer shown first; None if it could not be parsed.
      shown_second: verdict with the model's answer shown second; None if it could not be parsed.
    """
    if shown_first is None or shown_second is None:
        return "unparsable"
    if (shown_first, shown_second) == ("first", "second"):
        return "win"
    return "loss" if (shown_first, shown_second) == ("second", "first") else "tie"


def win_rate(
    outcomes: Sequence[Outcome], *, unparsable_as: Literal["apart", "tie"] = "apart", seed: int = 0
) -> WinRate:
    """Returns the counts, the win rate and its interval from a model's outcomes.

    Args:
      outcomes: outcomes of the questions.
      unparsable_as: "apart" leaves questions without a verdict out of the rate; "tie" counts them as ties in the rate.
        In both cases the result's `unparsable` counts them and its `ties` does not.
      seed: seed of the bootstrap.
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
    """Returns the win rate and its interval from counts, such as those of a published table; see `win_rate`."""
    halves = ties + (unparsable if unparsable_as == "tie" else 0)
    judged = wins + losses + halves
    rate = (wins + halves / 2) / judged if judged else None
    interval = bootstrap_interval(wins, losses, halves, seed=seed) if judged else None
    return WinRate(wins, losses, ties, unparsable, rate, interval)


def bootstrap_interval(
    wins: int, losses: int, ties: int, *, seed: int = 0, draws: int = 10_000, confidence: float = 0.95
) -> tuple[float, float]:
    """Returns the percentile interval of the adjusted win rate over `draws` resamples of the questions (Efron 1979).

    The interval has no width if all questions have the same outcome. The same seed gives the same interval.

    Raises:
      ValueError: there are no questions.
    """
    counts_3 = np.array([wins, ties, losses])
    questions = int(counts_3.sum())
    if not questions or counts_3.min() < 0:
        raise ValueError(f"{wins} wins, {losses} losses and {ties} ties have no rate")
    # The rate depends only on the counts, and the counts of a resample with replacement are multinomial.
    drawn_3 = np.random.default_rng(seed).multinomial(questions, counts_3 / questions, size=draws)
    low, high = np.quantile(drawn_3 @ _POINTS_3 / questions, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)

"""Successes of an arm in a family, by seed and question, and statistics of them."""

import dataclasses
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from aligner_jax.evals.estimates import Estimate, ratio
from aligner_jax.evals.interval import grouped_interval


@dataclasses.dataclass(frozen=True)
class Outcomes:
    """Successes.

    Attributes:
      right_sn: a number from 0 to 1, by seed and prompt of all tasks; 1 is a success.
      question_n: number of a prompt's question. The prompts of several tasks may ask the same question.
    """

    right_sn: Float[np.ndarray, "s n"]
    question_n: Int[np.ndarray, " n"]

    @classmethod
    def of(
        cls, right: Mapping[tuple[int, str], Sequence[float]], questions: Mapping[str, Sequence[Hashable]]
    ) -> "Outcomes | None":
        """Returns the outcomes of an arm; None if its tasks have no prompts.

        Args:
          right: successes of the prompts, by seed and task; every seed has all tasks.
          questions: questions of the prompts by task, in the same order.
        """
        seeds = sorted({seed for seed, _ in right})
        asked = [question for of_task in questions.values() for question in of_task]
        if not asked or not seeds:
            return None
        numbers = {question: number for number, question in enumerate(dict.fromkeys(asked))}
        right_sn = [[value for task in questions for value in right[seed, task]] for seed in seeds]
        return cls(np.asarray(right_sn, np.float64), np.asarray([numbers[question] for question in asked]))

    @property
    def success(self) -> Estimate:
        """Share of successes, with a 95 % interval over questions, and over seeds if there are several."""
        seeds, mean_s = len(self.right_sn), self.right_sn.mean(axis=1)
        of_seeds = float(np.var(mean_s, ddof=1)) / seeds if seeds > 1 else 0.0
        questions = np.tile(self.question_n, seeds)
        low, high = grouped_interval(self.right_sn.reshape(-1), questions, more_variance=of_seeds)
        value = float(mean_s.mean())
        # Rounding leaves the interval of a share of 1 below it.
        return Estimate(value, min(low, value), max(high, value))

    def by_question(self) -> Float[np.ndarray, "s q"]:
        """Returns the number of successes, by seed and question."""
        return np.stack([np.bincount(self.question_n, right_n) for right_n in self.right_sn])


def share_of_success(part: Outcomes | None, whole: Outcomes | None) -> Estimate | None:
    """Returns an arm's successes relative to the reference's, with a 95 % interval.

    Both are paired by seed and question (`estimates.ratio`). If they differ nowhere, or if the arm has no success, the
    interval is that of the arm's own success, relative to the reference's. None if one is missing, or if the reference
    has no success.
    """
    if part is None or whole is None or part.right_sn.shape != whole.right_sn.shape or not whole.right_sn.any():
        return None
    part_sq, whole_sq = part.by_question(), whole.by_question()
    if part_sq.shape[1] > 1 and part_sq.any() and not np.array_equal(part_sq, whole_sq):
        return ratio(part_sq, whole_sq)
    own, base = part.success, whole.success.value
    return Estimate(own.value / base, own.low / base, own.high / base)

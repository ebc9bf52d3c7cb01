"""aligner_jax/studies/curve.py: shares, intervals, and the numbers that a share takes."""

import math

import numpy as np
import pytest

from aligner_jax.evals.estimates import Estimate
from aligner_jax.studies.curve import Gains, share_of
from aligner_jax.studies.needed import crossing, needed
from aligner_jax.studies.outcomes import Outcomes, share_of_success


def outcomes(*right: list[float], questions: list[int] | None = None) -> Outcomes:
    asked = range(len(right[0])) if questions is None else questions
    return Outcomes(np.asarray(right, np.float64), np.asarray(asked))


def first(share: float) -> list[float]:
    """Ten prompts of which the first ones are a success."""
    return [1.0] * round(10 * share) + [0.0] * round(10 - 10 * share)


def test_the_parameters_for_a_share_lie_between_the_arms_on_both_sides_of_it():
    assert crossing(0.9, [100, 10_000], [0.625, 1.125]) == pytest.approx(100 * 100**0.55)
    assert crossing(0.5, [100, 10_000], [0.625, 1.125]) == 100
    assert crossing(1.2, [100, 10_000], [0.625, 1.125]) == math.inf
    # The first crossing counts, in whatever way it goes on.
    assert crossing(0.5, [100, 1000, 10_000], [0.6, 0.4, 0.9]) == 100


def test_needed_parameters_have_an_interval_over_questions():
    arms = [(100, outcomes(first(0.5))), (10_000, outcomes(first(0.9)))]
    found = needed(0.9, arms, outcomes(first(0.8)))
    assert found is not None
    # 90 % of 0.8 is 0.72, 55 % of the way from 0.5 to 0.9.
    assert found.value == pytest.approx(100 * 100**0.55)
    assert found.low < found.value < found.high
    same = [(100, outcomes(first(0.8))), (10_000, outcomes(first(0.8)))]
    assert str(needed(0.9, same, outcomes(first(0.8)))) == "≤ 100 [≤ 100, ≤ 100]"
    worse = [(100, outcomes(first(0.0))), (10_000, outcomes(first(0.1)))]
    assert str(needed(0.9, worse, outcomes(first(0.8)))).startswith("not reached")
    assert needed(0.9, arms, outcomes(first(0.0))) is None


def test_success_counts_questions_and_not_prompts():
    one = outcomes([1, 0, 1, 1]).success
    tasks = outcomes([1, 0, 1, 1] * 3, questions=[0, 1, 2, 3] * 3).success
    others = outcomes([1, 0, 1, 1] * 3).success
    assert one.value == tasks.value == others.value == 0.75
    # The same questions in three styles, which have the same successes, are no more than one style.
    assert tasks.high - tasks.low == pytest.approx(one.high - one.low, rel=0.01)
    assert others.high - others.low < 0.8 * (one.high - one.low)


def test_seeds_that_differ_widen_the_interval():
    equal = outcomes(first(0.5), first(0.5), first(0.5)).success
    shuffled = outcomes([1, 1, 0, 0] * 5, [0, 0, 1, 1] * 5).success
    differ = outcomes([1, 1, 1, 1, 0] * 4, [0, 0, 0, 0, 1] * 4).success
    assert equal.value == shuffled.value == differ.value == 0.5
    assert differ.high - differ.low > shuffled.high - shuffled.low
    # One seed's questions are the sample, however often they are asked.
    once = outcomes(first(0.5)).success
    assert equal.high - equal.low == pytest.approx(once.high - once.low, rel=0.01)


def test_a_share_of_success_is_paired_by_question():
    lora = outcomes(first(0.8))
    share = share_of_success(outcomes(first(0.6)), lora)
    assert share is not None
    assert share.value == pytest.approx(0.75)
    assert 0.3 < share.low < 0.75 < share.high < 1.2
    # Equal answers leave the arm's own interval.
    same, own = share_of_success(lora, lora), lora.success
    assert same == Estimate(1.0, own.low / 0.8, own.high / 0.8)
    none = share_of_success(outcomes(first(0.0)), lora)
    assert none is not None
    assert none.low == none.value == 0
    assert none.high > 0.2
    assert share_of_success(lora, outcomes(first(0.0))) is None
    assert share_of_success(lora, outcomes(first(0.8), first(0.8))) is None
    assert share_of_success(None, lora) is None


def test_outcomes_are_in_the_order_of_seeds_and_tasks():
    made = Outcomes.of(
        {(1, "b"): [0, 1], (0, "b"): [1, 1], (1, "a"): [0.5], (0, "a"): [0]}, {"a": ["x"], "b": ["y", "x"]}
    )
    assert made is not None
    assert made.right_sn.tolist() == [[0, 1, 1], [0.5, 0, 1]]
    assert made.question_n.tolist() == [0, 1, 0]
    assert made.by_question().tolist() == [[1, 1], [1.5, 0]]
    assert Outcomes.of({(0, "a"): []}, {"a": []}) is None


def test_shares_are_of_what_lora_gains_with_the_same_seed():
    def tested(*gains: list[float]) -> Gains:
        return Gains(np.asarray(gains), np.full((len(gains), len(gains[0])), 10.0))

    lora, small = tested([2, 4, 2, 4], [2, 4, 2, 4], [3, 5, 2, 4]), tested(*[[1, 2, 1, 2]] * 3)
    share = share_of(small, lora)
    assert share is not None
    assert share.value == pytest.approx(18 / 38, rel=1e-12)
    assert share.low < 6 / 14 < 6 / 12 < share.high
    assert share_of(lora, lora) == Estimate(1.0, 1.0, 1.0)
    # Examples differ equally with either arm, which a paired comparison cancels.
    assert share_of(tested([1, 2, 1, 2]), tested([2, 4, 2, 4])) == Estimate(0.5, 0.5, 0.5)


def test_a_share_of_an_improvement_that_may_be_none_is_not_given():
    lora, small = (Gains(np.asarray([gains]), np.full((1, 4), 10.0)) for gains in ([2, -2, 1, -0.5], [1, 1, 1, 1]))
    assert share_of(small, lora) is None
    assert share_of(small, None) is None
    # One has a seed that the other lacks.
    assert share_of(Gains(np.ones((2, 4)), np.ones((2, 4))), Gains(np.ones((1, 4)), np.ones((1, 4)))) is None

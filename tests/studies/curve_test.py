"""aligner_jax/studies/curve.py: shares, intervals, and the numbers that a share takes."""

import math

import numpy as np
import pytest

from aligner_jax.evals.estimates import Estimate
from aligner_jax.studies.curve import Gains, Reached, numbers_for, share_of, success


def arm(name: str, parameters: int, value: float | None) -> Reached:
    estimate = None if value is None else Estimate(value, value, value)
    return Reached(name, name.split("_")[0], parameters, True, 0.01, True, 1, 1, 10.0, estimate, 0.1, math.nan, None)


def test_the_numbers_for_a_share_lie_between_the_arms_on_both_sides_of_it():
    arms = [arm("aligner_1", 100, 0.5), arm("aligner_10", 10_000, 0.9), arm("lora_8", 460_800, 0.8)]
    # 90 % of 0.8 is 0.72, 55 % of the way from 0.5 to 0.9.
    assert numbers_for(0.9, arms, "aligner") == pytest.approx(100 * 100**0.55)
    assert numbers_for(0.5, arms, "aligner") == 100
    assert numbers_for(1.2, arms, "aligner") is None


def test_there_are_no_numbers_without_a_success_of_the_reference():
    assert numbers_for(0.9, [arm("aligner_1", 100, 0.5)], "aligner") is None
    assert numbers_for(0.9, [arm("aligner_1", 100, 0.5), arm("lora_8", 1000, 0.0)], "aligner") is None
    assert numbers_for(0.9, [arm("aligner_1", 100, None), arm("lora_8", 1000, None)], "aligner") is None


def test_success_counts_prompts_and_not_seeds():
    one = success([[1, 0, 1, 1]], ["a"])
    seeds = success([[1, 0, 1, 1]] * 3, ["a"] * 3)
    tasks = success([[1, 0, 1, 1]] * 3, ["a", "b", "c"])
    assert one is not None and seeds is not None and tasks is not None  # noqa: PT018
    assert one.value == seeds.value == tasks.value == 0.75
    assert seeds.high - seeds.low == pytest.approx(one.high - one.low, rel=0.2)
    assert tasks.high - tasks.low < 0.8 * (one.high - one.low)
    assert success([[], []], ["a", "b"]) is None


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

import math

import numpy as np
import pytest
from scipy.stats import t

from aligner_jax.evals.interval import grouped_interval, wilson_interval


@pytest.mark.parametrize(
    ("successes", "trials", "expected"),
    [
        # Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
    ],
)
def test_published_intervals(successes, trials, expected):
    assert wilson_interval(successes, trials) == pytest.approx(expected, abs=5e-5)


def test_both_ends_are_alike():
    low, high = wilson_interval(3, 17)
    assert wilson_interval(14, 17) == pytest.approx((1 - high, 1 - low))
    assert wilson_interval(17, 17)[1] == 1.0
    assert wilson_interval(0, 1)[0] == 0.0
    low, high = wilson_interval(8.5, 17)
    assert (low + high) / 2 == pytest.approx(0.5)


@pytest.mark.parametrize("counts", [(0, 0), (3, 2), (-1, 2)])
def test_what_is_not_a_share(counts):
    with pytest.raises(ValueError, match="is not a share"):
        wilson_interval(*counts)


def test_without_groups_it_is_wilsons_but_for_students_quantile():
    value_n = np.repeat([1.0, 0.0], [30, 20])
    trials = 49 * (1.959964 / t.ppf(0.975, 49)) ** 2
    assert grouped_interval(value_n, np.arange(50)) == pytest.approx(wilson_interval(0.6 * trials, trials), abs=1e-9)


def test_values_that_repeat_others_of_their_group_make_it_no_narrower():
    generator = np.random.default_rng(0)
    value_g = generator.integers(0, 2, 40).astype(float)
    alone = grouped_interval(value_g, np.arange(40))
    assert grouped_interval(np.repeat(value_g, 7), np.repeat(np.arange(40), 7) * 3 - 5) == pytest.approx(alone)
    order = generator.permutation(280)
    mixed = grouped_interval(np.repeat(value_g, 7)[order], np.repeat(np.arange(40), 7)[order])
    assert mixed == pytest.approx(alone)


def test_where_no_spread_is_seen_a_group_is_one_trial():
    assert grouped_interval(np.ones(12), np.repeat(np.arange(3), 4)) == wilson_interval(3, 3)
    assert grouped_interval(np.array([1.0, 0.0, 1.0, 0.0]), np.zeros(4, int)) == wilson_interval(0.5, 1)
    # Groups that are more alike than by chance do not count more than their values.
    assert grouped_interval(np.full(10, 0.5), np.arange(10)) == wilson_interval(5, 10)
    barely = np.array([0.4, 0.6] * 5)
    assert grouped_interval(barely, np.arange(10)) == pytest.approx(wilson_interval(5, 10))


def test_the_share_is_within_as_often_as_is_said():
    generator, within, ignoring = np.random.default_rng(1), 0, 0
    for _ in range(1000):
        sizes = generator.integers(1, 12, 30)
        # A prompt's own share follows a beta distribution of mean 0.6.
        own = np.repeat(generator.beta(0.9, 0.6, 30), sizes)
        value_n = (generator.random(len(own)) < own).astype(float)
        low, high = grouped_interval(value_n, np.repeat(np.arange(30), sizes))
        within += low <= 0.6 <= high
        low, high = wilson_interval(value_n.sum(), len(value_n))
        ignoring += low <= 0.6 <= high
    assert 0.93 <= within / 1000 <= 0.975
    assert ignoring / 1000 < 0.8


@pytest.mark.parametrize("values", [[], [1.5], [-0.5, 1.0], [math.nan]])
def test_shares_that_are_none(values):
    with pytest.raises(ValueError, match="shares from 0 to 1"):
        grouped_interval(np.array(values), np.arange(len(values)))

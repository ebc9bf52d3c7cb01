import itertools
import math

import numpy as np
import pytest

from aligner_jax.evals.win_rate import bootstrap_interval, of_both_orders, of_counts, win_rate


def test_a_win_takes_both_orders_and_disagreement_is_a_tie():
    kinds = ("first", "second", "neither")
    outcomes = {orders: of_both_orders(*orders) for orders in itertools.product(kinds, kinds)}
    assert outcomes.pop(("first", "second")) == "win"
    assert outcomes.pop(("second", "first")) == "loss"
    assert set(outcomes.values()) == {"tie"}


@pytest.mark.parametrize("orders", [(None, "second"), ("first", None), (None, None)])
def test_a_verdict_that_cannot_be_read_is_not_guessed_from_the_other(orders):
    assert of_both_orders(*orders) == "unparsable"


def test_the_adjusted_rate():
    rate = win_rate(["win"] * 3 + ["loss"] * 4 + ["tie"] * 2 + ["unparsable"])
    assert (rate.wins, rate.losses, rate.ties, rate.unparsable) == (3, 4, 2, 1)
    assert rate.rate == pytest.approx(4 / 9)
    as_ties = win_rate(["win"] * 3 + ["loss"] * 4 + ["tie"] * 2 + ["unparsable"], unparsable_as="tie")
    assert (as_ties.ties, as_ties.unparsable, as_ties.rate) == (2, 1, 0.45)


def test_no_verdict_at_all_has_no_rate():
    nothing = win_rate(["unparsable"] * 3)
    assert (nothing.rate, nothing.interval, nothing.unparsable) == (None, None, 3)
    assert win_rate(["unparsable"] * 3, unparsable_as="tie").rate == 0.5


def test_the_interval_is_that_of_resampled_questions():
    points = np.array([1.0] * 26 + [0.0] * 35 + [0.5] * 19)
    drawn = np.random.default_rng(5).integers(0, 80, (20_000, 80))
    expected = np.quantile(points[drawn].mean(1), [0.025, 0.975])
    # The rate moves in steps of 1/160.
    np.testing.assert_allclose(bootstrap_interval(26, 35, 19), expected, atol=1.01 / 160)


def test_the_interval_of_many_questions_is_the_normal_one():
    rate = of_counts(40_000, 30_000, 10_000)
    mean, square = 45 / 80, 42.5 / 80
    half = 1.959964 * math.sqrt((square - mean**2) / 80_000)
    assert rate.interval == pytest.approx((mean - half, mean + half), abs=half / 20)


def test_a_seed_gives_one_interval_and_all_wins_one_without_width():
    assert bootstrap_interval(260, 351, 190, seed=1) == bootstrap_interval(260, 351, 190, seed=1)
    assert bootstrap_interval(2600, 3511, 1900, seed=1) != bootstrap_interval(2600, 3511, 1900, seed=2)
    assert bootstrap_interval(9, 0, 0) == (1.0, 1.0)


@pytest.mark.parametrize("counts", [(0, 0, 0), (-1, 2, 3)])
def test_what_has_no_rate(counts):
    with pytest.raises(ValueError, match="have no rate"):
        bootstrap_interval(*counts)

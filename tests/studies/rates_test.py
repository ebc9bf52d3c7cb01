"""aligner_jax/studies/rates.py: the best rate is found beyond the first grid."""

import math

import pytest

from aligner_jax.studies.rates import MOST, best_rate, first_rates, is_inside, next_rate


def search(loss_of) -> dict[float, float]:
    losses = {rate: loss_of(rate) for rate in first_rates(0.01)}
    while (rate := next_rate(losses)) is not None:
        assert rate not in losses
        losses[rate] = loss_of(rate)
    return losses


@pytest.mark.parametrize("best", [0.01, 0.27, 0.0001])
def test_the_grid_is_extended_until_the_best_rate_is_inside(best: float):
    losses = search(lambda rate: abs(math.log(rate / best)))
    assert is_inside(losses)
    found = best_rate(losses)
    assert found is not None
    assert 1 / 2 < found / best < 2


def test_the_search_has_an_end_and_says_that_the_best_is_at_the_edge():
    losses = search(lambda rate: -rate)
    assert len(losses) == MOST
    assert not is_inside(losses)


def test_diverged_rates_count_as_worse():
    losses = search(lambda rate: math.nan if rate > 0.005 else rate**2 + 0.00005 / rate)
    assert is_inside(losses)
    assert best_rate({0.1: math.nan}) is None
    # Smaller rates are tried where all have diverged, and the search has an end.
    assert is_inside(search(lambda rate: math.nan if rate > 0.0005 else rate**2 + 1e-9 / rate))
    assert len(search(lambda rate: math.nan)) == MOST

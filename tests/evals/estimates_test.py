"""Intervals over seeds and examples."""

import numpy as np
import pytest
from scipy import stats

from aligner_jax.errors import InputError
from aligner_jax.evals import estimates


def test_an_interval_over_examples_alone_or_seeds_alone_is_students():
    ratio = estimates.ratio
    part_n = np.array([1.0, 4.0, 2.0, 2.5, 0.5])
    found = ratio(part_n[None], np.ones((1, 5)))
    want = stats.ttest_1samp(part_n, 0).confidence_interval(0.95)
    np.testing.assert_allclose([found.value, found.low, found.high], [2.0, *want], rtol=1e-12)
    # Seeds differ, examples do not.
    found = ratio(np.repeat(part_n[:3, None], 7, axis=1), np.ones((3, 7)))
    want = stats.ttest_1samp(part_n[:3], 0).confidence_interval(0.95)
    np.testing.assert_allclose([found.value, found.low, found.high], [7 / 3, *want], rtol=1e-12)
    # If seeds and examples vary equally, the degrees of freedom are those of two samples.
    both = ratio(np.array([[0.0, 2.0, 1.0], [2.0, 4.0, 3.0], [1.0, 3.0, 2.0]]), np.ones((3, 3)))
    half = stats.t.ppf(0.975, 4) * np.sqrt(1 / 3 + 1 / 3)
    np.testing.assert_allclose([both.value, both.low, both.high], [2, 2 - half, 2 + half], rtol=1e-12)
    with pytest.raises(InputError, match=r"examples that are short enough: 1, .* raise --heldout"):
        ratio(np.ones((3, 1)), np.ones((3, 1)))


@pytest.mark.parametrize(("of_seeds", "of_examples"), [(0.3, 0.1), (0.1, 0.3), (0.01, 1.0)])
def test_intervals_hold_the_truth_as_often_as_they_say(of_seeds: float, of_examples: float):
    """Seeds, examples and both together vary; numerator and denominator are correlated, as losses are."""
    ratio, rng = estimates.ratio, np.random.default_rng(0)
    held = []
    for _ in range(400):
        sizes_n = rng.gamma(4, 0.25, 40)
        whole_sn = sizes_n * (1 + rng.normal(0, 0.1, (3, 1))) + rng.normal(0, 0.1, (3, 40))
        shares_sn = 0.6 + rng.normal(0, of_seeds, (3, 1)) + rng.normal(0, of_examples, 40)
        found = ratio(shares_sn * sizes_n + rng.normal(0, 0.1, (3, 40)), whole_sn)
        held.append(found.low < 0.6 < found.high)
    # The standard error of a binomial share is 0.011. Below the range intervals are too narrow; at 1 they are useless.
    assert 0.92 <= np.mean(held) < 0.99

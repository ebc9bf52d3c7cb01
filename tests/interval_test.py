import pytest

from aligner_jax.evals.interval import wilson_interval


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

"""Choosing a token: the exact distribution that temperature, top-k and top-p leave, by many draws with fixed keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aligner_jax.decoding.choose import Sampling, choose
from aligner_jax.errors import InputError

PROBABILITIES = np.asarray([0.05, 0.4, 0.02, 0.3, 0.15, 0.08])
LOGITS = np.log(PROBABILITIES).astype(np.float32) + 3.0
DRAWS = 20_000
choose_jit = jax.jit(choose, static_argnames=("sampling",))


def _frequencies(sampling: Sampling, logits=LOGITS) -> np.ndarray:
    keys_b = jax.random.split(jax.random.key(0), DRAWS)
    tokens_b = choose_jit(np.broadcast_to(logits, (DRAWS, len(logits))), keys_b, sampling)
    assert tokens_b.dtype == jnp.int32
    return np.bincount(tokens_b, minlength=len(logits)) / DRAWS


def _kept(tokens: list[int], temperature: float = 1.0) -> np.ndarray:
    weights = np.zeros(6)
    weights[tokens] = PROBABILITIES[tokens] ** (1 / temperature)
    return weights / weights.sum()


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(temperature=1.0), PROBABILITIES),
        (Sampling(temperature=0.5), _kept([0, 1, 2, 3, 4, 5], 0.5)),
        (Sampling(temperature=2.0), _kept([0, 1, 2, 3, 4, 5], 2.0)),
        (Sampling(temperature=1.0, top_k=2), _kept([1, 3])),
        (Sampling(temperature=1.0, top_k=100), PROBABILITIES),
        (Sampling(temperature=1.0, top_p=0.39), _kept([1])),
        (Sampling(temperature=1.0, top_p=0.69), _kept([1, 3])),
        (Sampling(temperature=1.0, top_p=0.71), _kept([1, 3, 4])),
        (Sampling(temperature=0.5, top_p=0.88), _kept([1, 3], 0.5)),
        (Sampling(temperature=2.0, top_p=0.69), _kept([1, 3, 4], 2.0)),
        (Sampling(temperature=1.0, top_k=3, top_p=0.8), _kept([1, 3])),
    ],
    ids=str,
)
def test_distribution(sampling: Sampling, expected: np.ndarray):
    frequencies = _frequencies(sampling)
    np.testing.assert_array_equal(frequencies[expected == 0], 0)
    np.testing.assert_allclose(frequencies, expected, atol=4 * np.sqrt(0.25 / DRAWS))


def test_temperature_zero_top_k_one_and_a_tiny_top_p_are_greedy():
    for sampling in (Sampling(), Sampling(temperature=1.0, top_k=1), Sampling(temperature=1.0, top_p=1e-6)):
        assert _frequencies(sampling)[1] == 1.0


def test_ties_stay_in_together():
    frequencies = _frequencies(Sampling(temperature=1.0, top_k=1), np.asarray([0.0, 2.0, 2.0], np.float32))
    np.testing.assert_allclose(frequencies, [0, 0.5, 0.5], atol=0.02)


def test_a_rows_draw_does_not_depend_on_its_neighbours():
    keys_b = jax.random.split(jax.random.key(1), 8)
    sampling = Sampling(temperature=1.0, top_k=4, top_p=0.9)
    rows_bv = np.stack([np.roll(LOGITS, shift) for shift in range(8)])
    together = choose_jit(rows_bv, keys_b, sampling)
    alone = [choose_jit(rows_bv[row : row + 1], keys_b[row : row + 1], sampling)[0] for row in range(8)]
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"top_p": float("nan")}, "top_p is nan"),
    ],
)
def test_impossible_values_are_refused(values: dict, sentence: str):
    with pytest.raises(InputError, match=sentence):
        Sampling(**values)

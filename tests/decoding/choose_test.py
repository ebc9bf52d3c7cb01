"""Choosing a token: the exact distribution under temperature, top-k and top-p, by many draws with fixed keys."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aligner_jax.decoding.choose import RowSampling, Sampling, choose
from aligner_jax.errors import InputError

PROBABILITIES = np.asarray([0.05, 0.4, 0.02, 0.3, 0.15, 0.08])
LOGITS = np.log(PROBABILITIES).astype(np.float32) + 3.0
DRAWS = 20_000
MIX = [
    Sampling(), Sampling(1.0), Sampling(0.7, 5), Sampling(1.3, 0, 0.8), Sampling(0.4, 20, 0.9), Sampling(1e-40),
    Sampling(1e-40, 3, 0.5), Sampling(2.0, 3, 0.5), Sampling(1.0, 10**12, 1 - 1e-12), Sampling(1.0, 1), Sampling(1e39),
    Sampling(0.0, 3, 0.5), Sampling(1.0, 50), Sampling(1.0, 49), Sampling(1.0, 0, 1e-45),
    Sampling(1.0, min_p=0.1), Sampling(3.0, 9, 0.9, 0.3), Sampling(1.0, min_p=1.0),
]  # fmt: skip


@jax.jit
def choose_rows(logits_bv, keys_b, rows: RowSampling, seen_bv=None):
    return choose(logits_bv, keys_b, rows, seen_bv)


def choose_jit(logits_bv, keys_b, sampling: Sampling):
    return choose_rows(logits_bv, keys_b, RowSampling.of([sampling] * len(logits_bv)))


def chosen_alone(logits_v, key, sampling: Sampling):
    """Chooses for one row under one rule, with k and p as constants: the reference."""
    if sampling.temperature == 0:
        return jnp.argmax(logits_v)
    temperature = np.float32(min(sampling.temperature, float(np.finfo(np.float32).max)))
    highest = jnp.max(logits_v)
    logits_v = jnp.where(logits_v == highest, 0.0, (logits_v - highest) / temperature)
    if sampling.top_k:
        kth = jax.lax.top_k(logits_v, min(sampling.top_k, len(logits_v)))[0][-1]
        logits_v = jnp.where(logits_v < kth, -jnp.inf, logits_v)
    if sampling.top_p < 1:
        sorted_v = -jnp.sort(-logits_v)
        probabilities_v = jax.nn.softmax(sorted_v)
        before_v = jnp.cumsum(probabilities_v) - probabilities_v
        least = jnp.min(jnp.where(before_v < sampling.top_p, sorted_v, 0.0))
        logits_v = jnp.where(logits_v < least, -jnp.inf, logits_v)
    logits_v = jnp.where(logits_v < (math.log(sampling.min_p) if sampling.min_p else -jnp.inf), -jnp.inf, logits_v)
    return jax.random.categorical(key, logits_v)


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
        (Sampling(temperature=1.0, min_p=0.19), _kept([1, 3, 4, 5])),
        (Sampling(temperature=1.0, min_p=0.21), _kept([1, 3, 4])),
        (Sampling(temperature=2.0, min_p=0.21), _kept([0, 1, 2, 3, 4, 5], 2.0)),
        (Sampling(temperature=0.5, min_p=0.5), _kept([1, 3], 0.5)),
        (Sampling(temperature=1.0, min_p=1.0), _kept([1])),
        (Sampling(temperature=1.0, top_k=2, min_p=0.1), _kept([1, 3])),
    ],
    ids=str,
)
def test_distribution(sampling: Sampling, expected: np.ndarray):
    frequencies = _frequencies(sampling)
    np.testing.assert_array_equal(frequencies[expected == 0], 0)
    np.testing.assert_allclose(frequencies, expected, atol=4 * np.sqrt(0.25 / DRAWS))


def test_min_p_keeps_the_tokens_that_hugging_face_keeps():
    """MinPLogitsWarper drops tokens below min_p times the largest probability, after the temperature."""
    rng = np.random.default_rng(0)
    for temperature, min_p in ((1.0, 0.05), (0.7, 0.2), (2.0, 0.4)):
        logits = rng.normal(size=12) * 2
        scaled = np.exp(logits / temperature)
        probabilities = scaled / scaled.sum()
        kept = np.where(probabilities < min_p * probabilities.max(), 0, probabilities)
        assert 0 < (kept > 0).sum() < 12
        frequencies = _frequencies(Sampling(temperature, min_p=min_p), logits.astype(np.float32))
        np.testing.assert_array_equal(frequencies[kept == 0], 0)
        np.testing.assert_allclose(frequencies, kept / kept.sum(), atol=4 * np.sqrt(0.25 / DRAWS))


@pytest.mark.parametrize("seed", range(4))
def test_a_repetition_penalty_is_that_of_hugging_face(seed: int):
    """RepetitionPenaltyLogitsProcessor divides positive logits of seen tokens and multiplies negative ones."""
    rng = np.random.default_rng(seed)
    penalties = [1.0, 1.2, 2.0, 0.5, 3.0, 1e-3, 1.0, 50.0]
    logits_bv = (rng.normal(size=(8, 50)) * 4).astype(np.float32)
    seen_bv = rng.random((8, 50)) < 0.5
    rules = [Sampling(1.0 if row % 2 else 0.0, repetition_penalty=penalty) for row, penalty in enumerate(penalties)]
    keys_b = jax.random.split(jax.random.key(seed), 8)
    penalty_b1 = np.asarray(penalties, np.float32)[:, None]
    penalized_bv = np.where(seen_bv, np.where(logits_bv < 0, logits_bv * penalty_b1, logits_bv / penalty_b1), logits_bv)
    plain = [Sampling(rule.temperature) for rule in rules]
    wanted = [int(chosen_alone(*each)) for each in zip(jnp.asarray(penalized_bv), keys_b, plain, strict=True)]
    found = choose_rows(logits_bv, keys_b, RowSampling.of(rules), seen_bv).tolist()
    assert found == wanted
    assert found != choose_rows(logits_bv, keys_b, RowSampling.of(plain), seen_bv).tolist()


def test_temperature_zero_top_k_one_and_a_tiny_top_p_are_greedy():
    for sampling in (Sampling(), Sampling(temperature=1.0, top_k=1), Sampling(temperature=1.0, top_p=1e-6)):
        assert _frequencies(sampling)[1] == 1.0


@pytest.mark.parametrize("temperature", [1e-9, 1e-12, 1.2e-38, 1e-38, 1e-40, 1e-45, 1e-300, 5e-324])
@pytest.mark.parametrize("rest", [{}, {"top_k": 3}, {"top_p": 0.5}], ids=str)
def test_the_limit_of_a_small_temperature_is_greedy(temperature: float, rest: dict):
    rows_bv = np.random.default_rng(0).normal(size=(64, 50)).astype(np.float32) * 8
    rows_bv[0, 7] = rows_bv[0].max() + 1e-5
    # Logits that are all negative, too.
    rows_bv[1] -= 1000
    keys_b = jax.random.split(jax.random.key(0), 64)
    found = choose_jit(rows_bv, keys_b, Sampling(temperature, **rest))
    np.testing.assert_array_equal(found, rows_bv.argmax(-1))


@pytest.mark.parametrize("temperature", [1e-12, 1e-40])
def test_ties_stay_as_likely_at_a_small_temperature(temperature: float):
    frequencies = _frequencies(Sampling(temperature), np.asarray([0.0, 30.0, 30.0, 29.0], np.float32))
    np.testing.assert_allclose(frequencies, [0, 0.5, 0.5, 0], atol=0.02)


@pytest.mark.parametrize("temperature", [1e30, 1e38, 1e39, 1e300])
def test_the_limit_of_a_large_temperature_is_uniform(temperature: float):
    np.testing.assert_allclose(_frequencies(Sampling(temperature)), np.full(6, 1 / 6), atol=0.02)


@pytest.mark.parametrize("top_p", [1e-38, 1e-40, 5e-324])
def test_a_top_p_of_next_to_nothing_keeps_the_most_probable(top_p: float):
    assert _frequencies(Sampling(temperature=1.0, top_p=top_p))[1] == 1.0


def test_a_top_k_beyond_the_vocabulary_and_a_top_p_of_nearly_one_leave_all_in():
    for sampling in (Sampling(1.0, top_k=10**12), Sampling(1.0, top_p=1 - 1e-12)):
        np.testing.assert_allclose(_frequencies(sampling), PROBABILITIES, atol=0.02)


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


@pytest.mark.parametrize("seed", range(8))
def test_a_mix_of_rules_gives_each_row_the_token_of_its_own_rule(seed: int):
    rng = np.random.default_rng(seed)
    rows_bv = (rng.normal(size=(len(MIX), 50)) * 4).astype(np.float32)
    # The largest logits, and those at the cuts, have ties.
    rows_bv = np.where(rng.random(rows_bv.shape) < 0.5, np.round(rows_bv), rows_bv)
    keys_b = jax.random.split(jax.random.key(seed), len(MIX))
    alone = [int(chosen_alone(*each)) for each in zip(jnp.asarray(rows_bv), keys_b, MIX, strict=True)]
    assert choose_rows(rows_bv, keys_b, RowSampling.of(MIX)).tolist() == alone


def test_one_program_serves_every_mix():
    choose_rows.clear_cache()
    keys_b = jax.random.split(jax.random.key(0), 3)
    for rules in (MIX[:3], MIX[3:6], MIX[6:9]):
        choose_rows(np.zeros((3, 50), np.float32), keys_b, RowSampling.of(rules))
    assert choose_rows._cache_size() == 1


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"temperature": 10**400}, "temperature is 1000"),
        ({"temperature": "1"}, "temperature is '1'"),
        ({"temperature": True}, "temperature is True"),
        ({"temperature": None}, "temperature is None"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_k": 2.0}, "top_k is 2.0"),
        ({"top_k": True}, "top_k is True"),
        ({"top_p": "0.5"}, "top_p is '0.5'"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"top_p": float("nan")}, "top_p is nan"),
        ({"min_p": -0.1}, "min_p is -0.1"),
        ({"min_p": 1.1}, "min_p is 1.1"),
        ({"min_p": True}, "min_p is True"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
        ({"repetition_penalty": -1.0}, "repetition_penalty is -1.0"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty is inf"),
    ],
)
def test_impossible_values_are_refused(values: dict, sentence: str):
    with pytest.raises(InputError, match=sentence):
        Sampling(**values)

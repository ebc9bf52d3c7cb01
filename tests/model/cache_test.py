"""Decoding from the cache gives what the uncached forward pass gives, however the tokens arrive."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aligner_jax.model.cache import KVCache, empty_cache, forward_cached
from aligner_jax.model.llama import LlamaConfig, Params, forward
from aligner_jax.peft import bind

SLOTS = 16
TOKENS = np.random.default_rng(0).integers(0, 40, (2, 10)).astype(np.int32)
LENGTHS = (10, 6)

forward_jit = jax.jit(forward, static_argnames=("config",))
cached_jit = jax.jit(forward_cached, static_argnames=("config",))


def _run(params: Params, config: LlamaConfig, adapted, pieces: list[int], lengths=LENGTHS):
    """Hidden states and cache after the rows of those lengths, left-padded, went in piece by piece."""
    tokens_bt, valid_bt = np.zeros((2, 10), np.int32), np.zeros((2, 10), bool)
    for row, length in enumerate(lengths):
        tokens_bt[row, 10 - length :] = TOKENS[row, :length]
        valid_bt[row, 10 - length :] = True
    cache, outs, start = empty_cache(config, 2, SLOTS, jnp.float32), [], 0
    for piece in pieces:
        part = (slice(None), slice(start, start + piece))
        hidden_btd, cache = cached_jit(
            params, tokens_bt[part], cache, config=config, adapted=adapted, valid_bt=valid_bt[part]
        )
        outs.append(hidden_btd)
        start += piece
    return np.concatenate(outs, axis=1), cache


def _rows(hidden_btd: np.ndarray) -> list[np.ndarray]:
    return [hidden_btd[row, 10 - length :] for row, length in enumerate(LENGTHS)]


@pytest.fixture(scope="module", params=[0, 1, 3], ids=["base", "p1", "p3"])
def adapted(request, config: LlamaConfig, params: Params, trained_adapter):
    return bind(trained_adapter(request.param), params, config).adapted if request.param else ()


@pytest.fixture(scope="module")
def uncached(config: LlamaConfig, params: Params, adapted) -> list[np.ndarray]:
    hidden_btd = forward_jit(params, TOKENS, config=config, adapted=adapted)
    return [hidden_btd[row, :length] for row, length in enumerate(LENGTHS)]


@pytest.mark.parametrize("pieces", [[10], [5, 5], [1] * 10], ids=["prefill", "in pieces", "token by token"])
def test_cached_decoding_equals_the_uncached_forward(pieces, uncached, config: LlamaConfig, params: Params, adapted):
    hidden_btd, cache = _run(params, config, adapted, pieces)
    for cached_td, plain_td in zip(_rows(hidden_btd), uncached, strict=True):
        np.testing.assert_allclose(cached_td, plain_td, atol=2e-5)
    assert cache.used == 10
    np.testing.assert_array_equal(cache.lengths_b, LENGTHS)
    np.testing.assert_array_equal(cache.valid_bs.sum(axis=1), LENGTHS)


def test_what_padding_and_empty_slots_hold_does_not_matter(config: LlamaConfig, params: Params):
    _, cache = _run(params, config, (), [5, 5])
    free_lbksh = ~cache.valid_bs[None, :, None, :, None]
    dirty = cache.replace(
        k_lbksh=jnp.where(free_lbksh, 1e3, cache.k_lbksh), v_lbksh=jnp.where(free_lbksh, -1e3, cache.v_lbksh)
    )
    step = functools.partial(cached_jit, params, TOKENS[:, :1], config=config)
    np.testing.assert_array_equal(step(dirty)[0], step(cache)[0])


def test_an_empty_cache_has_the_shape_that_its_docstring_says(config: LlamaConfig):
    cache: KVCache = jax.eval_shape(lambda: empty_cache(config, 5, 7, jnp.bfloat16))
    assert cache.k_lbksh.shape == cache.v_lbksh.shape == (3, 5, 2, 7, 6)
    assert cache.k_lbksh.dtype == jnp.bfloat16
    assert cache.valid_bs.shape == (5, 7)

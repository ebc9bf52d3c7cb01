"""Decoding from the cache equals the uncached forward pass, for any split of the tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aligner_jax.model.cache import (
    KVCache,
    empty_cache,
    forward_cached,
    prefill_cache,
    written_at_once,
    written_by_row,
)
from aligner_jax.model.llama import LlamaConfig, Params, abstract_params, forward
from aligner_jax.model.quantized import Quantization
from aligner_jax.peft import Bound, bind, init_adapter

SLOTS = 16
TOKENS = np.random.default_rng(0).integers(0, 40, (2, 10)).astype(np.int32)
LENGTHS = np.asarray([6, 3], np.int32)
"""Lengths of the prefilled rows."""
FIRST_POSITION = 5

forward_jit = jax.jit(forward, static_argnames=("config",))
prefill_jit = jax.jit(prefill_cache, static_argnames=("config", "slots", "first_position"))
cached_jit = jax.jit(forward_cached, static_argnames=("config",))


def _prefilled(params: Params, config: LlamaConfig, adapted) -> tuple[np.ndarray, KVCache]:
    padded_bt = np.where(np.arange(10) < LENGTHS[:, None], TOKENS, 39)
    hidden_bd, cache = prefill_jit(
        params, padded_bt, LENGTHS, config=config, slots=SLOTS, adapted=adapted, first_position=FIRST_POSITION
    )
    return np.asarray(hidden_bd), cache


def _continued(params: Params, config: LlamaConfig, adapted, cache: KVCache, pieces: list[int]):
    """Returns hidden states and cache after each row's next tokens were fed in pieces."""
    outs = []
    for piece in pieces:
        starts_b = np.asarray(cache.lengths_b)
        next_bt = np.stack([TOKENS[row, start : start + piece] for row, start in enumerate(starts_b)])
        hidden_btd, cache = cached_jit(params, next_bt, cache, config=config, adapted=adapted)
        outs.append(hidden_btd)
    return np.concatenate(outs, axis=1), cache


@pytest.fixture(scope="module", params=["base", "p1", "p3", "joint", "several"])
def adapted(request, config: LlamaConfig, params: Params, trained_adapter, randomized):
    if request.param == "base":
        return Bound().adapted
    if request.param == "joint":
        return bind(randomized(init_adapter("prefix", config, num_tokens=3, start_layer=1)), params, config).adapted
    if request.param == "several":
        joint = randomized(init_adapter("prefix", config, num_tokens=3, start_layer=2))
        return bind([trained_adapter(3), trained_adapter(1), trained_adapter(2), joint], params, config).adapted
    return bind(trained_adapter(int(request.param[1:])), params, config).adapted


@pytest.fixture(scope="module")
def uncached(config: LlamaConfig, params: Params, adapted) -> np.ndarray:
    positions_bt = FIRST_POSITION + np.arange(10, dtype=np.int32)[None]
    return np.asarray(forward_jit(params, TOKENS, config=config, adapted=adapted, positions_bt=positions_bt))


def test_prefill_gives_each_rows_last_hidden_state(uncached, config: LlamaConfig, params: Params, adapted):
    hidden_bd, cache = _prefilled(params, config, adapted)
    np.testing.assert_allclose(hidden_bd, uncached[np.arange(2), LENGTHS - 1], atol=2e-5)
    np.testing.assert_array_equal(cache.lengths_b, LENGTHS)
    np.testing.assert_array_equal(cache.positions_b, LENGTHS + FIRST_POSITION)


@pytest.mark.parametrize("pieces", [[4], [2, 2], [1] * 4], ids=["at once", "in pieces", "token by token"])
def test_tokens_after_prompts_of_different_lengths(pieces, uncached, config: LlamaConfig, params: Params, adapted):
    _, cache = _prefilled(params, config, adapted)
    hidden_btd, cache = _continued(params, config, adapted, cache, pieces)
    for row, length in enumerate(LENGTHS):
        np.testing.assert_allclose(hidden_btd[row], uncached[row, length : length + 4], atol=2e-5)
    np.testing.assert_array_equal(cache.lengths_b, LENGTHS + 4)


@pytest.mark.parametrize("pieces", [[10], [5, 5], [1] * 10], ids=["at once", "in pieces", "token by token"])
def test_an_empty_cache_takes_all_tokens(pieces, uncached, config: LlamaConfig, params: Params, adapted):
    empty = empty_cache(config, 2, SLOTS, jnp.float32, first_position=FIRST_POSITION)
    hidden_btd, cache = _continued(params, config, adapted, empty, pieces)
    np.testing.assert_allclose(hidden_btd, uncached, atol=2e-5)
    np.testing.assert_array_equal(cache.lengths_b, [10, 10])


def test_slots_beyond_a_rows_length_do_not_matter(config: LlamaConfig, params: Params):
    _, cache = _prefilled(params, config, ())
    free_1b1s1 = (jnp.arange(SLOTS)[None] >= cache.lengths_b[:, None])[None, :, None, :, None]
    dirty = cache.replace(
        k_lbksh=jnp.where(free_1b1s1, 1e3, cache.k_lbksh), v_lbksh=jnp.where(free_1b1s1, -1e3, cache.v_lbksh)
    )
    assert np.any(dirty.k_lbksh != cache.k_lbksh)
    hidden, dirty_hidden = (_continued(params, config, (), each, [1, 1])[0] for each in (cache, dirty))
    np.testing.assert_array_equal(dirty_hidden, hidden)


def test_a_step_writes_one_slot_of_each_row(config: LlamaConfig, params: Params):
    _, cache = _prefilled(params, config, ())
    _, after = _continued(params, config, (), cache, [1])
    for before, now in ((cache.k_lbksh, after.k_lbksh), (cache.v_lbksh, after.v_lbksh)):
        changed_bs = np.any(np.asarray(before) != np.asarray(now), axis=(0, 2, 4))
        np.testing.assert_array_equal(changed_bs, np.arange(SLOTS) == LENGTHS[:, None])


def test_an_empty_cache_has_the_shape_that_its_docstring_says(config: LlamaConfig):
    cache: KVCache = jax.eval_shape(lambda: empty_cache(config, 5, 7, jnp.bfloat16))
    assert cache.k_lbksh.shape == cache.v_lbksh.shape == (3, 5, 2, 7, 6)
    assert cache.k_lbksh.dtype == jnp.bfloat16
    assert cache.lengths_b.shape == (5,)
    assert cache.slots == 7


def test_on_gpus_a_step_reads_weights_and_writes_the_cache_without_loops(config: LlamaConfig, params: Params):
    cache = empty_cache(config, 2, SLOTS, jnp.float32)
    traced = cached_jit.trace(params, TOKENS[:, :1], cache, config=config)
    loops = {
        name: traced.lower(lowering_platforms=(name,)).as_text().count("stablehlo.while") for name in ("cpu", "cuda")
    }
    # The layers, and the rows of keys and of values.
    assert loops == {"cpu": 3, "cuda": 0}


def test_on_gpus_a_step_dequantizes_one_layer_at_a_time(config: LlamaConfig):
    params = abstract_params(config, "float32", Quantization("int8"))
    cache = empty_cache(config, 2, SLOTS, jnp.float32)
    lowered = cached_jit.trace(params, TOKENS[:, :1], cache, config=config).lower(lowering_platforms=("cuda",))
    assert lowered.as_text().count("stablehlo.while") == 1


@pytest.mark.parametrize("length", [0, 3, SLOTS - 1, SLOTS])
def test_slots_written_at_once_are_those_written_by_row(length: int):
    x_lbksh = np.random.default_rng(1).standard_normal((3, 2, 2, SLOTS, 4)).astype(np.float32)
    new_lbkth = np.random.default_rng(2).standard_normal((3, 2, 2, 2, 4)).astype(np.float32)
    starts_b = np.asarray([length, 5], np.int32)
    by_row, at_once = (
        write(x_lbksh, new_lbkth, starts_b) for write in (jax.jit(written_by_row), jax.jit(written_at_once))
    )
    np.testing.assert_array_equal(at_once, by_row)
    assert not np.array_equal(by_row, x_lbksh)

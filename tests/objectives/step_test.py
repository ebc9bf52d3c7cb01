"""The training step: only the adapter changes, the split of the batch does not matter, and the loss decreases."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from aligner_jax.model.llama import LlamaConfig, Params
from aligner_jax.objectives.loss import Loss, Totals
from aligner_jax.objectives.step import init_state, make_step
from aligner_jax.peft import Adapter, Options, init_adapter

RNG = np.random.default_rng(0)
LENGTH = 12


@pytest.fixture(scope="module")
def batch(pack):
    """Four rows with 0, 1, 9 and 5 targets, so that a mean of means differs from the mean."""
    rows = []
    for length, targets in ((6, 0), (8, 1), (10, 9), (7, 5)):
        mask = [0] * (length - targets) + [1] * targets
        rows.append([(RNG.integers(0, 40, length).tolist(), mask)])
    return pack(rows, LENGTH)


@pytest.fixture(scope="module")
def first_gradient(config: LlamaConfig, params: Params, batch):
    """Returns gradient and metrics of an adapter's first step; each step function is compiled once."""
    optimizer = optax.trace(decay=0.0)

    @functools.cache
    def step(method: str, options: Options, accumulate: int):
        adapter = init_adapter(method, config, **options.as_dict())
        return jax.jit(make_step(adapter, optimizer, config=config, accumulate=accumulate))

    def run(adapter: Adapter, accumulate: int = 1):
        take = step(adapter.method, adapter.options, accumulate)
        state, metrics = take(init_state(adapter, optimizer), params, batch)
        return state.optimizer.trace, metrics

    return run


@pytest.mark.parametrize("num_tokens", [1, 3])
def test_at_step_zero_only_the_gates_have_a_gradient(num_tokens: int, config: LlamaConfig, first_gradient):
    gradient, metrics = first_gradient(init_adapter("aligner", config, 0, num_tokens=num_tokens, start_layer=0))
    np.testing.assert_array_equal(gradient["tokens_pd"], 0)
    assert np.abs(gradient["gates_ln"]).min() > 0
    np.testing.assert_allclose(metrics.grad_norm, jnp.linalg.norm(gradient["gates_ln"]), rtol=1e-5)


def test_accumulation_equals_one_batch(trained_adapter, first_gradient):
    adapter = trained_adapter(1, start_layer=0)
    whole, parts = first_gradient(adapter), first_gradient(adapter, accumulate=4)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), parts, whole)


def test_training_lowers_the_loss_and_leaves_the_base_bit_for_bit(config: LlamaConfig, params: Params, batch):
    adapter = init_adapter("aligner", config, 0, num_tokens=1, start_layer=0)
    optimizer = optax.adamw(0.05)
    step = jax.jit(make_step(adapter, optimizer, config=config), donate_argnums=0)
    before, fresh = (jax.tree.map(np.array, tree) for tree in (params, adapter.trainable))

    def train() -> tuple[list[float], dict[str, np.ndarray]]:
        state, losses = init_state(adapter, optimizer), []
        for _ in range(30):
            state, metrics = step(state, params, batch)
            losses.append(float(metrics.loss))
        assert state.step == 30
        return losses, jax.tree.map(np.array, state.trainable)

    losses, trained = train()
    assert losses[-1] < losses[0] - 0.5
    jax.tree.map(np.testing.assert_array_equal, before, params)
    jax.tree.map(np.testing.assert_array_equal, fresh, adapter.trainable)
    assert all(not np.array_equal(trained[name], fresh[name]) for name in fresh)
    jax.tree.map(np.testing.assert_array_equal, train(), (losses, trained))

    # Zero gates do not decay, so a first batch without targets leaves them at zero.
    empty = dataclasses.replace(batch, loss_mask_bt=jnp.zeros_like(batch.loss_mask_bt))
    state, metrics = step(init_state(adapter, optimizer), params, empty)
    assert metrics.loss == metrics.grad_norm == 0
    np.testing.assert_array_equal(state.trainable["gates_ln"], fresh["gates_ln"])


def same_bits(a, b) -> bool:
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in leaves)


POISON = 39


@pytest.fixture(scope="module")
def poisoned(params: Params) -> Params:
    """The base, with NaN as the embedding of one token."""
    return dataclasses.replace(params, embed_vd=params.embed_vd.at[POISON].set(jnp.nan))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_that_is_not_finite_changes_the_number_alone(
    accumulate, config: LlamaConfig, poisoned: Params, batch, trained_adapter
):
    adapter, optimizer = trained_adapter(2), optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.05))
    step = jax.jit(make_step(adapter, optimizer, config=config, accumulate=accumulate))
    clean = dataclasses.replace(batch, tokens_bt=jnp.minimum(batch.tokens_bt, POISON - 1))
    bad = dataclasses.replace(batch, tokens_bt=clean.tokens_bt.at[2, 4].set(POISON))
    state, metrics = step(init_state(adapter, optimizer), poisoned, clean)
    assert not metrics.skipped
    after, metrics = step(state, poisoned, bad)
    assert metrics.skipped
    assert not np.isfinite(metrics.loss)
    assert after.step == 2
    assert same_bits(after.replace(step=state.step), state)
    # The result is that of a run without the skipped step.
    again, _ = step(after, poisoned, clean)
    without, _ = step(state, poisoned, clean)
    assert same_bits(again.replace(step=without.step), without)
    assert not same_bits(again.trainable, after.trainable)


def test_a_gradient_that_is_not_finite_is_seen_where_the_loss_is(config: LlamaConfig, params: Params, batch):
    adapter = init_adapter("aligner", config, 0, num_tokens=2, start_layer=0)

    def sums(params, policy, reference, batch, **_):
        # √|x| has no finite slope at 0, where the gates begin.
        gates_ln = policy.trainable["gates_ln"]
        return jnp.sum(jnp.sqrt(jnp.abs(gates_ln))), Totals(jnp.int32(1), {})

    optimizer = optax.adamw(0.05)
    state = init_state(adapter, optimizer)
    after, metrics = jax.jit(make_step(adapter, optimizer, config=config, loss=Loss(sums)))(state, params, batch)
    assert metrics.loss == 0
    assert metrics.skipped
    assert same_bits(after.replace(step=state.step), state)


def test_a_bfloat16_adapter_stays_bfloat16(config: LlamaConfig, params: Params, batch, trained_adapter):
    adapter = jax.tree.map(lambda x: x.astype(jnp.bfloat16), trained_adapter(1, start_layer=0))
    optimizer = optax.adamw(0.01)
    step = make_step(adapter, optimizer, config=config)
    state, _ = jax.eval_shape(step, init_state(adapter, optimizer), params, batch)
    assert {x.dtype for x in state.trainable.values()} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gradient_is_divided_by_the_count_itself(config: LlamaConfig, params: Params, batch, dtype: str):
    count, total = 257, jnp.asarray(1.0, dtype)
    assert jnp.bfloat16(count) == 256

    def sums(params, adapter, reference, batch, **_):
        return total.astype(jnp.float32) * jnp.sum(adapter.trainable["gates_ln"]), Totals(jnp.int32(count), {})

    fresh = init_adapter("aligner", config, 0, num_tokens=1, start_layer=0)
    adapter = jax.tree.map(lambda x: x.astype(dtype), fresh)
    optimizer = optax.sgd(1.0)
    step = jax.jit(make_step(adapter, optimizer, config=config, loss=Loss(sums)))
    state, metrics = step(init_state(adapter, optimizer), params, batch)
    wanted = (np.float32(1) / np.float32(count)).astype(dtype)
    np.testing.assert_array_equal(-state.trainable["gates_ln"], np.full((3, 4), wanted))
    assert metrics.loss == 0


def test_the_state_holds_nothing_of_the_base(config: LlamaConfig):
    adapter = init_adapter("aligner", config, 0, num_tokens=1, start_layer=0)
    state = init_state(adapter, optax.adamw(1e-3))
    assert {x.shape for x in jax.tree.leaves(state)} == {(), (1, 16), (3, 4)}

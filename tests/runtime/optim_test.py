import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

from aligner_jax.runtime.config import OptimConfig
from aligner_jax.runtime.optim import learning_rate, make_optimizer, to_state_dtype


def rates(counts, steps, **optim):
    return np.array([learning_rate(OptimConfig(**optim), steps)(jnp.asarray(c)) for c in counts])


def trained(optim: OptimConfig, params, gradients):
    """Returns the parameters after one update per gradient, as a training step makes them."""
    transformation = make_optimizer(optim, len(gradients))

    @jax.jit
    def update(params, state, gradient):
        changes, state = transformation.update(gradient, state, params)
        return optax.apply_updates(params, changes), state

    params = to_state_dtype(params, optim)
    state = transformation.init(params)
    for gradient in gradients:
        params, state = update(params, state, to_state_dtype(gradient, optim))
    return params, state


def test_the_papers_rate_ends_at_half_of_the_published_one():
    recipe = {"lr": 9e-3, "schedule": "paper_as_run", "warmup_steps": 12_500}
    np.testing.assert_allclose(rates([0, 1, 3_125, 6_250], 6_250, **recipe), [0, 7.2e-7, 2.25e-3, 4.5e-3], rtol=1e-6)
    np.testing.assert_allclose(rates([12_500, 20_000], 20_000, **recipe), [9e-3, 9e-3], rtol=1e-6)


def test_the_papers_dpo_rate_ends_at_three_quarters_of_the_published_one():
    recipe = {"lr": 1e-4, "schedule": "paper_as_run", "warmup_steps": 10_000}
    np.testing.assert_allclose(rates([7_500], 7_500, **recipe), [7.5e-5], rtol=1e-6)


def test_warmup_reaches_lr_and_stays():
    recipe = {"lr": 1.0, "schedule": "warmup_constant", "warmup_steps": 4}
    np.testing.assert_allclose(rates([0, 1, 2, 3, 4, 99], 100, **recipe), [0.25, 0.5, 0.75, 1, 1, 1])
    np.testing.assert_allclose(rates([0, 5], 9, lr=1.0, schedule="warmup_constant"), [1, 1])


def test_constant_is_constant():
    np.testing.assert_allclose(rates([0, 1, 10_000], 10, lr=0.5), [0.5] * 3)


def test_cosine_falls_from_lr_to_zero():
    got = rates([0, 1, 2, 5, 10], 10, lr=1.0, schedule="cosine", warmup_steps=2)
    np.testing.assert_allclose(got, [0.5, 1.0, *(0.5 * (1 + np.cos(np.pi * np.array([0, 3, 8]) / 8)))], atol=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 3, 10])
def test_every_update_of_a_cosine_has_a_rate_and_it_is_optaxs(steps):
    got = rates(range(steps + 1), steps, lr=1.0, schedule="cosine")
    np.testing.assert_allclose(got, [optax.cosine_decay_schedule(1.0, steps)(i) for i in range(steps + 1)], atol=1e-7)
    assert got[-2] > 0
    assert got[-1] == 0


def test_runs_of_older_versions_keep_their_cosine():
    old = {"lr": 1.0, "schedule": "cosine", "warmup_steps": 2, "cosine_zero": "at_last"}
    wanted = [0.5, 1.0, *(0.5 * (1 + np.cos(np.pi * np.array([1, 4, 8]) / 8)))]
    np.testing.assert_allclose(rates([0, 1, 2, 5, 9], 10, **old), wanted, atol=1e-6)


def test_float32_is_adam_with_decoupled_decay_on_every_leaf(rng):
    optim = OptimConfig(lr=0.05, weight_decay=0.3, eps=1e-3)
    params = {"tokens_pd": rng.normal(size=(2, 3)), "gates_ln": rng.normal(size=(4, 2))}
    gradients = [{name: rng.normal(size=p.shape) for name, p in params.items()} for _ in range(5)]
    got, _ = trained(optim, to_arrays(params), [to_arrays(g) for g in gradients])
    for name, p in params.items():
        m = v = np.zeros_like(p)
        for t, g in enumerate((g[name] for g in gradients), 1):
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            adam = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + optim.eps)
            p = p - optim.lr * optim.weight_decay * p - optim.lr * adam
        np.testing.assert_allclose(got[name], p, rtol=1e-5, atol=1e-6)


def test_bfloat16_is_bit_equal_to_arithmetic_that_rounds_every_operation(rng):
    optim = OptimConfig(lr=9e-3, state_dtype="bfloat16", schedule="paper_as_run", warmup_steps=40)
    params = rng.normal(size=300).astype(np.float32)
    gradients = (rng.normal(size=(20, 300)) * 10.0 ** rng.uniform(-6, 0, (20, 300))).astype(np.float32)
    got, state = trained(optim, {"a": jnp.asarray(params)}, [{"a": jnp.asarray(g)} for g in gradients])

    def rounded(x):
        return np.asarray(x, np.float32).astype(ml_dtypes.bfloat16).astype(np.float32)

    one = np.float32(1)
    p, m, v = rounded(params), np.zeros(300, np.float32), np.zeros(300, np.float32)
    for t, g in enumerate(map(rounded, gradients), 1):
        rate = np.float32(optim.lr * (t - 1) / 40)
        p = rounded(p * (one - rate * np.float32(optim.weight_decay)))
        m = rounded(m + np.float32(1 - 0.9) * (g - m))
        v = rounded(rounded(v * np.float32(0.999)) + np.float32(1 - 0.999) * g * g)
        denominator = rounded(rounded(rounded(np.sqrt(v)) / np.float32((1 - 0.999**t) ** 0.5)) + np.float32(1e-8))
        p = rounded(p - np.float32(rate / (1 - 0.9**t)) * (m / denominator))
    assert {leaf.dtype for leaf in (got["a"], state.mu["a"], state.nu["a"])} == {jnp.dtype("bfloat16")}
    np.testing.assert_array_equal(np.asarray(got["a"], np.float32), p)


def test_in_bfloat16_decay_multiplies_and_rounds(rng):
    optim = OptimConfig(lr=0.5, weight_decay=0.5, state_dtype="bfloat16")
    params = np.asarray(rng.normal(size=300), ml_dtypes.bfloat16)
    got, _ = trained(optim, {"a": jnp.asarray(params)}, [{"a": jnp.zeros(300)}])
    np.testing.assert_array_equal(np.asarray(got["a"]), (params.astype(np.float32) * 0.75).astype(ml_dtypes.bfloat16))


def test_in_bfloat16_small_updates_leave_normal_entries_bit_identical(rng):
    optim = OptimConfig(lr=9e-3, weight_decay=0.02, schedule="paper_as_run", warmup_steps=12_500)
    start = {"tokens_pd": jnp.asarray(rng.normal(size=(4, 256)), jnp.bfloat16).astype(jnp.float32)}
    gradients = [{"tokens_pd": jnp.asarray(rng.normal(size=(4, 256)), jnp.float32)} for _ in range(100)]
    low, _ = trained(dataclasses.replace(optim, state_dtype="bfloat16"), start, gradients)
    high, _ = trained(optim, start, gradients)
    size = np.abs(np.asarray(start["tokens_pd"]))
    # The rate ends at 7.2e-5, and Adam's update is at most about ten times that: far from 2⁻⁹ of an entry near 1.
    assert np.array_equal(
        np.asarray(low["tokens_pd"], np.float32)[size > 0.5], np.asarray(start["tokens_pd"])[size > 0.5]
    )
    assert np.all(np.asarray(high["tokens_pd"]) != np.asarray(start["tokens_pd"]))


def test_clipping_scales_the_gradient_to_the_norm(rng):
    # At this large eps Adam is linear in the gradient, so the gradient's size shows.
    optim = OptimConfig(lr=1.0, weight_decay=0.0, eps=1e6)
    gradient = {"a": jnp.asarray([3.0, 4.0])}
    moved = {
        clip: trained(dataclasses.replace(optim, clip=clip), {"a": jnp.zeros(2)}, [gradient])[0]["a"]
        for clip in (None, 1.0, 10.0)
    }
    np.testing.assert_allclose(moved[1.0] * 5, moved[None], rtol=1e-5)
    np.testing.assert_allclose(moved[10.0], moved[None], rtol=1e-6)


def to_arrays(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


@pytest.fixture
def rng():
    return np.random.default_rng(0)

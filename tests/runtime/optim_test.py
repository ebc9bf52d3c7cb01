import dataclasses
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

from aligner_jax.errors import InputError
from aligner_jax.runtime.config import OptimConfig
from aligner_jax.runtime.optim import learning_rate, make_optimizer, make_sweep_optimizer, to_state_dtype


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


TOKENS, GATES = "aligner_0/tokens_pd", "aligner_0/gates_ln"


def arrays(rng) -> dict[str, np.ndarray]:
    return {TOKENS: rng.normal(size=(3, 5)), GATES: rng.normal(size=(4, 2))}


@pytest.mark.parametrize("name", ["adamw", "lion", "muon"])
def test_a_factor_on_the_rate_of_gates_multiplies_their_updates(rng, name: str):
    start, gradient = (to_arrays(arrays(rng)) for _ in range(2))
    optim = OptimConfig(name=name, lr=0.01, weight_decay=0.3, clip=1.0)
    one, three = (trained(dataclasses.replace(optim, gate_rate=rate), start, [gradient])[0] for rate in (1.0, 3.0))
    np.testing.assert_array_equal(three[TOKENS], one[TOKENS])
    np.testing.assert_allclose(three[GATES] - start[GATES], 3 * (one[GATES] - start[GATES]), rtol=1e-4, atol=1e-7)
    assert np.abs(one[GATES] - start[GATES]).min() > 1e-3


@pytest.mark.parametrize("name", ["adamw", "lion", "muon"])
def test_decay_on_tokens_leaves_other_arrays_without(rng, name: str):
    start, gradient = (to_arrays(arrays(rng)) for _ in range(2))
    optim = OptimConfig(name=name, lr=0.01, weight_decay=0.3)
    some, all_, none = (
        trained(dataclasses.replace(optim, **changes), start, [gradient])[0]
        for changes in ({"decay_on": "tokens"}, {}, {"weight_decay": 0.0})
    )
    np.testing.assert_array_equal(some[TOKENS], all_[TOKENS])
    np.testing.assert_array_equal(some[GATES], none[GATES])
    for leaf in start:
        np.testing.assert_allclose(none[leaf] - all_[leaf], 0.003 * start[leaf], rtol=1e-3, atol=1e-6)


def test_lion_moves_every_entry_by_the_sign_of_the_mixed_momentum(rng):
    optim = OptimConfig(name="lion", lr=0.05, weight_decay=0.0, b1=0.8, b2=0.9)
    start, gradients = rng.normal(size=7), rng.normal(size=(4, 7))
    got, _ = trained(optim, to_arrays({"a": start}), [to_arrays({"a": g}) for g in gradients])
    p, m = start, np.zeros(7)
    for g in gradients:
        p, m = p - 0.05 * np.sign(0.8 * m + 0.2 * g), 0.9 * m + 0.1 * g
    np.testing.assert_allclose(got["a"], p, rtol=1e-5)


def test_muon_turns_the_tokens_and_leaves_other_arrays_to_adamw(rng):
    start, gradient = (to_arrays({"tokens_pd": rng.normal(size=(3, 64)), "gates_ln": rng.normal(size=(4, 2))})
                       for _ in range(2))  # fmt: skip
    muon, adamw = (
        trained(OptimConfig(name=name, lr=0.01, weight_decay=0.0), start, [gradient])[0] for name in ("muon", "adamw")
    )
    np.testing.assert_array_equal(muon["gates_ln"], adamw["gates_ln"])
    moved = np.asarray(muon["tokens_pd"] - start["tokens_pd"], np.float64)
    # Newton and Schulz's iteration takes singular values to between 0.7 and 1.2 of one size.
    sigma_p = np.linalg.svd(moved, compute_uv=False)
    assert sigma_p.max() / sigma_p.min() < 1.8
    assert np.sqrt((moved**2).mean()) == pytest.approx(0.2 * 0.01, rel=0.3)
    u, _, vt = np.linalg.svd(np.asarray(gradient["tokens_pd"], np.float64), full_matrices=False)
    assert np.sum(-moved * (u @ vt)) / np.linalg.norm(moved) / np.sqrt(3) > 0.95


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gate_rate": 2.0}, "config.optim.gate_rate is 2.0, which is for arrays named gates_*, but the trained arrays "
         "are a_q_ldr, tokens_lpd: leave it out"),
        ({"name": "muon"}, "config.optim.name is 'muon', which is for matrices, but the trained arrays are a_q_ldr"),
    ],
)  # fmt: skip
def test_what_is_for_none_of_the_arrays_is_refused(changes: dict, message: str):
    arrays = {"tokens_lpd": jnp.ones((2, 3, 4)), "a_q_ldr": jnp.ones((2, 4, 1))}
    with pytest.raises(InputError, match=re.escape(message)):
        make_optimizer(OptimConfig(**changes), 5).init(arrays)
    arrays.pop("tokens_lpd")
    with pytest.raises(InputError, match="decay_on is 'tokens', which is for arrays named tokens_"):
        make_sweep_optimizer(OptimConfig(decay_on="tokens"), 5, np.ones(2)).init(arrays)


def test_at_its_defaults_the_state_is_that_of_older_versions():
    arrays = {"tokens_pd": jnp.ones((1, 2)), "gates_ln": jnp.zeros((2, 2))}
    state = make_optimizer(OptimConfig(), 5).init(arrays)
    assert jax.tree.structure(state) == jax.tree.structure(optax.adamw(lambda count: 1.0).init(arrays))


def to_arrays(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


@pytest.fixture
def rng():
    return np.random.default_rng(0)

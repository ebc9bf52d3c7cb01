"""Chunked cross-entropy: values and gradients of the plain one, without materializing all logits."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aligner_jax.model.llama import unembed
from aligner_jax.model.params import Params
from aligner_jax.objectives import cross_entropy
from aligner_jax.objectives.cross_entropy import token_losses

B, T, D, V = 3, 11, 8, 160
RNG = np.random.default_rng(0)
HIDDEN_BTD = jnp.asarray(RNG.standard_normal((B, T, D)), jnp.float32)
TARGETS_BT = jnp.asarray(RNG.integers(0, V, (B, T)), jnp.int32)
MASK_BT = jnp.asarray(RNG.random((B, T)) < 0.4)
WEIGHTS_BT = jnp.asarray(RNG.standard_normal((B, T)), jnp.float32)


def _params(tied: bool) -> Params:
    embed_vd = jnp.asarray(np.random.default_rng(1).standard_normal((V, D)), jnp.float32)
    head_dv = None if tied else jnp.asarray(np.random.default_rng(2).standard_normal((D, V)), jnp.float32)
    return Params(embed_vd=embed_vd, layers=None, norm_d=jnp.ones(D), head_dv=head_dv)


def _plain(params, hidden_btd, targets_bt, mask_bt):
    logits_btv = jax.nn.log_softmax(unembed(params, hidden_btd))
    return jnp.where(mask_bt, -jnp.take_along_axis(logits_btv, targets_bt[..., None], -1)[..., 0], 0.0)


def _losses_and_gradients(losses, params, hidden_btd, mask_bt, argnums=(0, 1)):
    def weighted(params, hidden_btd):
        losses_bt = losses(params, hidden_btd, TARGETS_BT, mask_bt)
        return jnp.sum(losses_bt * WEIGHTS_BT), losses_bt

    (_, losses_bt), gradients = jax.value_and_grad(weighted, argnums, has_aux=True)(params, hidden_btd)
    return losses_bt, gradients


def _chunked(chunk: int, argnums=(0, 1)):
    return functools.partial(_losses_and_gradients, functools.partial(token_losses, chunk=chunk), argnums=argnums)


def _close(actual, expected):
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), actual, expected)


@pytest.mark.parametrize(("chunk", "tied", "block"), [(4, True, 64), (256, False, 64), (8, True, 80), (256, False, V)])
def test_equals_plain_in_values_and_gradients(chunk: int, tied: bool, block: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cross_entropy, "VOCAB_BLOCK", block)
    params = _params(tied)
    expected = jax.jit(functools.partial(_losses_and_gradients, _plain))(params, HIDDEN_BTD, MASK_BT)
    _close(jax.jit(_chunked(chunk))(params, HIDDEN_BTD, MASK_BT), expected)
    _close(jax.jit(_chunked(chunk, argnums=1))(params, HIDDEN_BTD, MASK_BT), (expected[0], expected[1][1]))
    values = jax.jit(functools.partial(token_losses, chunk=chunk))(params, HIDDEN_BTD, TARGETS_BT, MASK_BT)
    _close(values, expected[0])


def test_masks_of_nothing_and_of_everything():
    params, run = _params(True), jax.jit(_chunked(4, argnums=1))
    plain = jax.jit(functools.partial(_losses_and_gradients, _plain, argnums=1))
    for mask in (False, True):
        mask_bt = jnp.full((B, T), mask)
        _close(run(params, HIDDEN_BTD, mask_bt), plain(params, HIDDEN_BTD, mask_bt))


def test_bfloat16_losses_are_float32_of_the_rounded_inputs():
    params, hidden_btd = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (_params(False), HIDDEN_BTD))
    losses_bt, gradient = jax.jit(_chunked(4, argnums=1))(params, hidden_btd, MASK_BT)
    exact = jax.tree.map(lambda x: x.astype(jnp.float32), (params, hidden_btd))
    plain = jax.jit(functools.partial(_losses_and_gradients, _plain, argnums=1))
    expected_bt, expected = plain(*exact, MASK_BT)
    assert losses_bt.dtype == jnp.float32
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_allclose(losses_bt, expected_bt, atol=1e-5)
    np.testing.assert_allclose(gradient.astype(jnp.float32), expected, atol=0.02)


def _largest_array(function, *args) -> int:
    text = jax.jit(function).lower(*args).compile().as_text()
    shapes = re.findall(r"\b(?:f32|bf16|f16|s32|u32|pred)\[([\d,]+)\]", text)
    return max(math.prod(map(int, shape.split(","))) for shape in shapes)


@pytest.mark.parametrize("argnums", [1, (0, 1)], ids=["hidden", "hidden and params"])
def test_the_logits_of_the_batch_never_exist(argnums):
    params = _params(False)
    plain = functools.partial(_losses_and_gradients, _plain, argnums=argnums)
    assert _largest_array(plain, params, HIDDEN_BTD, MASK_BT) >= B * T * V
    assert _largest_array(_chunked(4, argnums), params, HIDDEN_BTD, MASK_BT) <= max(V * D, 4 * V)


def test_a_frozen_head_makes_one_block_of_the_logits_at_a_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cross_entropy, "VOCAB_BLOCK", 16)
    chunk = B * T
    assert chunk * 16 < V * D < chunk * V
    assert _largest_array(_chunked(chunk, 1), _params(True), HIDDEN_BTD, MASK_BT) <= V * D


@pytest.mark.parametrize("argnums", [1, (0, 1)], ids=["hidden", "hidden and params"])
def test_chunks_without_targets_are_skipped(argnums, monkeypatch: pytest.MonkeyPatch):
    ran, unembed = [], cross_entropy.unembed

    def counted(head, hidden_cd):
        jax.debug.callback(lambda: ran.append(None))
        return unembed(head, hidden_cd)

    monkeypatch.setattr(cross_entropy, "unembed", counted)
    run = jax.jit(_chunked(4, argnums))

    def runs(num_targets: int) -> int:
        mask = np.zeros(B * T, bool)
        mask[np.random.default_rng(3).permutation(B * T)[:num_targets]] = True
        ran.clear()
        jax.block_until_ready(run(_params(False), HIDDEN_BTD, jnp.asarray(mask.reshape(B, T))))
        jax.effects_barrier()
        return len(ran)

    once = runs(1)
    assert once > 0
    assert [runs(n) for n in (0, 4, 5, B * T)] == [0, once, 2 * once, 9 * once]
    if argnums == 1:
        assert once == 1, "the backward pass recomputes nothing where only the hidden states are differentiated"

"""The SFT objective: the tokens that count, and losses that do not depend on packing or padding."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from aligner_jax.model.llama import LlamaConfig, Params
from aligner_jax.objectives import sft
from aligner_jax.peft import apply

RNG = np.random.default_rng(0)
DOCUMENTS = [
    (RNG.integers(0, 40, length).tolist(), [0] * prompt + [1] * (length - prompt))
    for length, prompt in ((5, 2), (7, 0), (4, 3), (6, 6), (9, 4))
]
LENGTH = 16

losses_jit = jax.jit(sft.losses, static_argnames=("config",))


@functools.partial(jax.jit, static_argnames=("config",))
def _loss_and_gradient(params, adapter, batch, *, config):
    def loss_sum(trainable):
        return sft.loss_sum(params, adapter.replace(trainable=trainable), batch, config=config)

    return jax.value_and_grad(loss_sum, has_aux=True)(adapter.trainable)


def test_targets_are_the_masked_tokens_that_something_of_their_document_precedes(pack):
    batch = pack([[([5, 6, 7], [1, 0, 1]), ([8, 9], [1, 1])], [([3, 4], [0, 0])]], 7)
    targets_bt, mask_bt = sft.targets(batch)
    np.testing.assert_array_equal(targets_bt[0, :4], [6, 7, 8, 9])
    np.testing.assert_array_equal(mask_bt, [[0, 1, 0, 1, 0, 0, 0], [0] * 7])


def test_losses_are_minus_the_log_of_the_next_tokens_probability(
    config: LlamaConfig, params: Params, trained_adapter, pack
):
    tokens, mask = DOCUMENTS[4]
    batch, adapter = pack([[(tokens, mask)]] * 2, LENGTH), trained_adapter(3, start_layer=0)
    losses_bt, _ = losses_jit(params, adapter, batch, config=config)
    logits_btv = jax.jit(apply, static_argnames=("config",))(params, adapter, jnp.asarray([tokens]), config=config)
    logits = np.asarray(logits_btv[0], np.float64)
    for position in range(len(tokens) - 1):
        loss = np.log(np.exp(logits[position]).sum()) - logits[position, tokens[position + 1]]
        np.testing.assert_allclose(losses_bt[0, position], loss if mask[position + 1] else 0.0, atol=1e-4)


def test_packed_documents_have_the_losses_and_gradients_that_they_have_alone(
    config: LlamaConfig, params: Params, trained_adapter, pack
):
    adapter = trained_adapter(3, start_layer=0)
    packed = pack([DOCUMENTS[:3], DOCUMENTS[3:]], LENGTH)
    alone = [pack([[document], []], LENGTH) for document in DOCUMENTS]
    packed_bt, _ = losses_jit(params, adapter, packed, config=config)
    places = [(0, 0), (0, 5), (0, 12), (1, 0), (1, 6)]
    for batch, (tokens, _), (row, start) in zip(alone, DOCUMENTS, places, strict=True):
        alone_bt, _ = losses_jit(params, adapter, batch, config=config)
        part = slice(start, start + len(tokens))
        np.testing.assert_allclose(packed_bt[row, part], alone_bt[0, : len(tokens)], atol=1e-5)
    (loss, count), gradient = _loss_and_gradient(params, adapter, packed, config=config)
    each = [_loss_and_gradient(params, adapter, batch, config=config) for batch in alone]
    (alone_loss, alone_count), alone_gradient = jax.tree.map(lambda *leaves: sum(leaves), *each)
    assert count == alone_count == 3 + 6 + 1 + 0 + 5
    np.testing.assert_allclose(loss, alone_loss, rtol=1e-5)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), gradient, alone_gradient)


def test_what_stands_in_the_padding_does_not_matter(config: LlamaConfig, params: Params, trained_adapter, pack):
    batch = pack([DOCUMENTS[:2], [DOCUMENTS[4]]], LENGTH)
    other = dataclasses.replace(batch, tokens_bt=jnp.where(batch.segment_ids_bt == 0, 17, batch.tokens_bt))
    adapter = trained_adapter(3, start_layer=0)
    one, two = (losses_jit(params, adapter, batch, config=config) for batch in (batch, other))
    jax.tree.map(np.testing.assert_array_equal, one, two)

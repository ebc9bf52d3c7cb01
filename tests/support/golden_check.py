"""Checks an adapted model against a golden file: logits, loss and gradients of an independent implementation."""

import functools
from collections.abc import Mapping

import jax
import numpy as np

from aligner_jax.model.llama import LlamaConfig, Params
from aligner_jax.objectives import sft
from aligner_jax.objectives.batch import Batch
from aligner_jax.peft import Adapter, apply


def check_golden(
    golden: Mapping[str, np.ndarray],
    adapter: Adapter,
    gradients: Mapping[str, np.ndarray],
    config: LlamaConfig,
    params: Params,
) -> None:
    """Asserts logits within 1e-4, the loss within 1e-5, and each gradient within 1e-4 of its own norm.

    Args:
      golden: ids, loss_mask, logits, base_logits and loss.
      gradients: gradients of the loss with respect to the adapter's arrays.
    """
    tokens_bt = golden["ids"].astype(np.int32)
    batch = Batch(
        tokens_bt=tokens_bt,
        segment_ids_bt=np.ones_like(tokens_bt),
        positions_bt=np.broadcast_to(np.arange(tokens_bt.shape[1], dtype=np.int32), tokens_bt.shape),
        loss_mask_bt=golden["loss_mask"].astype(bool),
    )

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def mean_loss(trainable, params):
        loss, count = sft.loss_sum(params, adapter.replace(trainable=trainable), batch, config=config)
        return loss / count, apply(params, adapter.replace(trainable=trainable), tokens_bt, config=config)

    (loss, logits_btv), gradient = mean_loss(adapter.trainable, params)
    np.testing.assert_allclose(logits_btv, golden["logits"], atol=1e-4, rtol=0)
    np.testing.assert_allclose(loss, golden["loss"], atol=1e-5, rtol=0)
    base_btv = jax.jit(apply, static_argnames=("config",))(params, None, tokens_bt, config=config)
    np.testing.assert_allclose(base_btv, golden["base_logits"], atol=1e-4, rtol=0)
    for name, expected in gradients.items():
        error = np.linalg.norm(np.asarray(gradient[name]) - expected) / np.linalg.norm(expected)
        assert error < 1e-4, name

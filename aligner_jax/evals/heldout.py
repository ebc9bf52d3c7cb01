"""Held-out loss: mean cross-entropy in nats over all targets of documents that were not trained on."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp

from aligner_jax.data.pipeline import Batch
from aligner_jax.errors import InputError
from aligner_jax.model.llama import LlamaConfig, Params
from aligner_jax.objectives import sft
from aligner_jax.peft import Adapter

_loss_sum = jax.jit(sft.loss_sum, static_argnames=("config",))


def heldout_loss(params: Params, adapter: Adapter | None, batches: Iterable[Batch], *, config: LlamaConfig) -> float:
    """Mean loss in nats a target token over all batches, every target weighing the same.

    Raises:
      InputError: the batches hold no target.
    """
    total, count = 0.0, 0
    for batch in batches:
        loss, targets = _loss_sum(params, adapter, jax.tree.map(jnp.asarray, batch), config=config)
        total, count = total + float(loss), count + int(targets)
    if not count:
        raise InputError("the held-out data have no target tokens")
    return total / count

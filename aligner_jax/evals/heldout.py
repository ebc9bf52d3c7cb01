"""Held-out loss: mean cross-entropy in nats per target token over documents that were not trained on."""

import functools
from collections.abc import Iterable
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float

from aligner_jax.errors import InputError
from aligner_jax.model.llama import LlamaConfig, Params
from aligner_jax.model.logical import constrain
from aligner_jax.objectives import sft
from aligner_jax.objectives.batch import Batch
from aligner_jax.peft import Adapter
from aligner_jax.runtime.global_batch import replicate


class DocumentLoss(NamedTuple):
    """Loss of one document.

    Attributes:
      nats: sum of the losses of its target tokens, in nats.
      targets: number of target tokens.
    """

    nats: float
    targets: int


def heldout_loss(params: Params, adapter: Adapter | None, batches: Iterable[Batch], *, config: LlamaConfig) -> float:
    """Returns the mean loss in nats per target token over all batches. All targets have the same weight.

    Raises:
      InputError: the batches have no target tokens.
    """
    return mean_loss(document_losses(params, adapter, batches, config=config))


def document_losses(
    params: Params, adapter: Adapter | None, batches: Iterable[Batch], *, config: LlamaConfig
) -> list[DocumentLoss]:
    """Returns the loss of every document, ordered by batch, row and position in the row.

    The order depends only on the batches, so the losses of two adapters on the same batches form pairs.
    """
    found = []
    for batch in batches:
        rows = replicate(batch)
        losses_bt, mask_bt = jax.device_get(_losses(params, adapter, rows, config=config))
        for losses_t, mask_t, segments_t in zip(losses_bt, mask_bt, batch.segment_ids_bt, strict=True):
            segments_t = np.asarray(segments_t)
            nats_s = np.bincount(segments_t, weights=losses_t.astype(np.float64))
            targets_s = np.bincount(segments_t, weights=mask_t)
            # Segment 0 is padding.
            found += [DocumentLoss(float(nats_s[i]), int(targets_s[i])) for i in range(1, len(nats_s))]
    return found


def mean_loss(documents: Iterable[DocumentLoss]) -> float:
    """Returns the mean loss in nats per target token over the documents. All targets have the same weight.

    Raises:
      InputError: there are no target tokens.
    """
    found = list(documents)
    targets = sum(document.targets for document in found)
    if not targets:
        raise InputError("the held-out data have no target tokens")
    return sum(document.nats for document in found) / targets


@functools.partial(jax.jit, static_argnames=("config",))
def _losses(
    params: Params, adapter: Adapter | None, batch: Batch, *, config: LlamaConfig
) -> tuple[Float[Array, "b t"], Bool[Array, "b t"]]:
    losses_bt, mask_bt = sft.losses(params, adapter, batch, config=config)
    # Replicated, so that every process can read them.
    return constrain(losses_bt, None, None), constrain(mask_bt, None, None)

"""Supervised fine-tuning: next-token cross-entropy on the tokens that count as targets."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from aligner_jax.model.llama import LlamaConfig, Params, Remat
from aligner_jax.objectives.batch import Batch
from aligner_jax.objectives.cross_entropy import token_losses
from aligner_jax.objectives.loss import Loss, Options, Totals
from aligner_jax.peft import Adapter, hidden_states
from aligner_jax.peft.rows import num_stacked


def losses(
    params: Params,
    adapter: Adapter | None,
    batch: Batch,
    *,
    config: LlamaConfig,
    remat: Remat = "none",
    dropout_key: Array | None = None,
) -> tuple[Float[Array, "b t"], Bool[Array, "b t"]]:
    """Losses in nats of every position's next token, and the mask of positions where that token is a target.

    A document's first token is never one: nothing precedes it. Where the batch says which adapter each row has
    (adapter_b), the adapter is a stack of many (`peft.rows`).
    """
    targets_bt, mask_bt = targets(batch)
    hidden_btd, params = hidden_states(
        params,
        adapter,
        jnp.asarray(batch.tokens_bt),
        config=config,
        segment_ids_bt=jnp.asarray(batch.segment_ids_bt),
        positions_bt=jnp.asarray(batch.positions_bt),
        remat=remat,
        dropout_key=dropout_key,
        adapter_b=None if batch.adapter_b is None else jnp.asarray(batch.adapter_b),
    )
    return token_losses(params, hidden_btd, targets_bt, mask_bt), mask_bt


def targets(batch: Batch) -> tuple[Int[Array, "b t"], Bool[Array, "b t"]]:
    """The token that follows each position, and where it counts: in the mask, and of the same document."""
    tokens_bt, segments_bt = jnp.asarray(batch.tokens_bt), jnp.asarray(batch.segment_ids_bt)
    follows_bt = jnp.concatenate(
        [segments_bt[:, 1:] == segments_bt[:, :-1], jnp.zeros_like(segments_bt[:, :1], bool)], 1
    )
    return jnp.roll(tokens_bt, -1, axis=1), jnp.roll(jnp.asarray(batch.loss_mask_bt), -1, axis=1) & follows_bt


def loss_sum(
    params: Params,
    adapter: Adapter | None,
    batch: Batch,
    *,
    config: LlamaConfig,
    remat: Remat = "none",
    dropout_key: Array | None = None,
) -> tuple[Float[Array, "*a"], Int[Array, "*a"]]:
    """Sum of the losses in nats, and the number of targets: their quotient is the loss, over any number of batches.

    Of a stack of adapters, each one's own.
    """
    losses_bt, mask_bt = losses(params, adapter, batch, config=config, remat=remat, dropout_key=dropout_key)
    if adapter is None or batch.adapter_b is None:
        return jnp.sum(losses_bt), jnp.sum(mask_bt)
    adapter_b, number = jnp.asarray(batch.adapter_b), num_stacked(adapter)
    losses_b, counts_b = jnp.sum(losses_bt, axis=1), jnp.sum(mask_bt, axis=1)
    return jax.ops.segment_sum(losses_b, adapter_b, number), jax.ops.segment_sum(counts_b, adapter_b, number)


def sums(
    params: Params,
    adapter: Adapter | None,
    reference: Adapter | None,
    batch: Batch,
    *,
    options: Options | None = None,
    config: LlamaConfig,
    remat: Remat = "none",
    dropout_key: Array | None = None,
) -> tuple[Float[Array, "*a"], Totals]:
    """Returns `loss_sum` as the step takes it; the objective has no options, reference or metrics of its own."""
    loss, count = loss_sum(params, adapter, batch, config=config, remat=remat, dropout_key=dropout_key)
    return loss, Totals(count, {})


LOSS = Loss(sums)

"""Supervised fine-tuning: next-token cross-entropy over the target tokens."""

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
    """Returns the loss in nats of every position's next token, and the mask of positions whose next token is a target.

    A document's first token is never a target, since nothing precedes it. If the batch has adapter_b, the index of each
    row's adapter, `adapter` is a stack (`peft.rows`).
    """
    targets_bt, mask_bt = targets(batch)
    hidden_btd, params = hidden_states(
        params,
        adapter,
        jnp.asarray(batch.tokens_bt),
        config=config,
        # In a row of one document, no token comes after the padding, so causal attention alone is right.
        segment_ids_bt=jnp.asarray(batch.segment_ids_bt) if batch.packed else None,
        positions_bt=jnp.asarray(batch.positions_bt),
        remat=remat,
        dropout_key=dropout_key,
        adapter_b=None if batch.adapter_b is None else jnp.asarray(batch.adapter_b),
    )
    return token_losses(params, hidden_btd, targets_bt, mask_bt), mask_bt


def targets(batch: Batch) -> tuple[Int[Array, "b t"], Bool[Array, "b t"]]:
    """Returns the token that follows each position, and True where it is in the loss mask and in the same document."""
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
    """Returns the sum of the losses in nats and the number of targets; one value per adapter of a stack.

    The loss over any number of batches is the quotient of their totals.
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
    """Returns `loss_sum` as `loss.Sums`; the objective has no options, reference or metrics."""
    loss, count = loss_sum(params, adapter, batch, config=config, remat=remat, dropout_key=dropout_key)
    return loss, Totals(count, {})


LOSS = Loss(sums)

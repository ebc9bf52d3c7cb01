"""Adapters, one module per method (`methods.METHODS`), and the forward pass of an adapted model."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from aligner_jax.data.token_ids import check_ids
from aligner_jax.errors import InputError
from aligner_jax.model.llama import LlamaConfig, Params, Remat, forward, unembed
from aligner_jax.peft.adapter import Adapter, Method, Options
from aligner_jax.peft.bound import Bound
from aligner_jax.peft.methods import METHODS, complete_options, has_strength, init_adapter, with_strength
from aligner_jax.peft.rows import bind_rows
from aligner_jax.peft.together import bind, bind_together


def hidden_states(
    params: Params,
    adapter: Adapter | Sequence[Adapter] | None,
    tokens_bt: Int[Array, "b t"],
    *,
    config: LlamaConfig,
    segment_ids_bt: Int[Array, "b t"] | None = None,
    positions_bt: Int[Array, "b t"] | None = None,
    remat: Remat = "none",
    dropout_key: Array | None = None,
    adapter_b: Int[Array, " b"] | None = None,
) -> tuple[Float[Array, "b t d"], Params]:
    """Returns hidden states of the adapted model after its final norm, and the parameters for `unembed`.

    Args:
      params: parameters of the base.
      adapter: an adapter, several that are applied together, a stack (with adapter_b), or None for the base alone.
      tokens_bt: token ids.
      config: configuration of the base.
      segment_ids_bt, positions_bt, remat: options of `llama.forward`.
      dropout_key: a `jax.random.key` of this training step; None applies no dropout.
      adapter_b: index of each row's adapter in the stack (`bind_rows`).

    Raises:
      InputError: adapter_b is given with adapters that are applied together, or rows cannot have adapters of this
        method.
    """
    if adapter is not None and adapter_b is not None:
        if not isinstance(adapter, Adapter):
            raise InputError("adapter_b chooses from one stack of adapters, not from adapters applied together")
        bound = bind_rows(adapter, params, config, adapter_b, dropout_key=dropout_key)
    else:
        bound = bind(adapter, params, config, dropout_key=dropout_key)
    params = bound.on(params)
    if bound.first_position:
        if positions_bt is None:
            positions_bt = jnp.arange(tokens_bt.shape[1], dtype=jnp.int32)[None]
        positions_bt = positions_bt + bound.first_position
    hidden_btd = forward(
        params,
        tokens_bt,
        config=config,
        adapted=bound.adapted,
        segment_ids_bt=segment_ids_bt,
        positions_bt=positions_bt,
        remat=remat,
    )
    return hidden_btd, params


def apply(
    params: Params,
    adapter: Adapter | Sequence[Adapter] | None,
    tokens_bt: Int[Array, "b t"],
    *,
    config: LlamaConfig,
    segment_ids_bt: Int[Array, "b t"] | None = None,
    positions_bt: Int[Array, "b t"] | None = None,
) -> Float[Array, "b t v"]:
    """Returns float32 next-token logits of the adapted model.

    This is a pure function of params, adapter.trainable and tokens_bt: `jax.grad`, `jax.vmap` and `jax.jit` work on it.
    For forward-mode derivatives call `llama.forward` with `implementation="xla"`.

    Args:
      params: parameters of the base.
      adapter: an adapter, several that are applied together, or None for the base alone.
      tokens_bt: token ids. They are not checked within `jax.jit`, where ids out of range read other embeddings.
      config: configuration of the base.
      segment_ids_bt: document ids of packed rows, which also need positions_bt.
      positions_bt: rotary positions; by default 0, 1, … along the row.

    Raises:
      InputError: a token id is negative or has no embedding.
    """
    _check_tokens(tokens_bt, config)
    hidden_btd, params = hidden_states(
        params, adapter, tokens_bt, config=config, segment_ids_bt=segment_ids_bt, positions_bt=positions_bt
    )
    return unembed(params, hidden_btd)


def _check_tokens(tokens_bt: Int[Array, "b t"], config: LlamaConfig) -> None:
    known = not isinstance(tokens_bt, Tracer) and getattr(tokens_bt, "is_fully_addressable", True)
    if known and tokens_bt.size:
        ids_bt = jax.device_get(tokens_bt)
        check_ids([int(ids_bt.min()), int(ids_bt.max())], config.vocab_size, what="the array of tokens")


__all__ = [
    "METHODS",
    "Adapter",
    "Bound",
    "Method",
    "Options",
    "apply",
    "bind",
    "bind_together",
    "complete_options",
    "has_strength",
    "hidden_states",
    "init_adapter",
    "with_strength",
]

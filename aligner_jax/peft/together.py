"""Binds one adapter, or several that are applied together, to a base."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array

from aligner_jax.model.layers import Adapted
from aligner_jax.model.llama import Layers, LlamaConfig, Params
from aligner_jax.model.updates import LowRank, Update, updated
from aligner_jax.peft.adapter import Adapter
from aligner_jax.peft.bound import Bound
from aligner_jax.peft.methods import METHODS, fresh_adapter


def bind(
    adapter: Adapter | Sequence[Adapter] | None,
    params: Params,
    config: LlamaConfig,
    *,
    dropout_key: Array | None = None,
) -> Bound:
    """Binds an adapter to a base.

    Args:
      adapter: an adapter, several that are applied together (`bind_together`), or None for a `Bound` without effect.
      params: parameters of the base.
      config: configuration of the base.
      dropout_key: a `jax.random.key` of this training step; None applies no dropout.
    """
    if adapter is None:
        return Bound()
    if not isinstance(adapter, Adapter):
        return bind_together(adapter, params, config, dropout_key=dropout_key)
    return METHODS[adapter.method].bind(adapter.trainable, adapter.options, params, config, dropout_key)


def first_position(adapter: Adapter, params: Params, config: LlamaConfig) -> int:
    """Returns the rotary position of a text's first token. Positions before it belong to the adapter (prompt tuning).

    Args:
      adapter: an adapter or a stack of adapters (`rows.stack_adapters`); its arrays are not read.
      params: parameters of the base.
      config: configuration of the base.
    """

    def bound(params: Params) -> Bound:
        return bind(fresh_adapter(adapter.method, config, 0, adapter.options), params, config)

    return jax.eval_shape(bound, params).first_position


def bind_together(
    adapters: Sequence[Adapter], params: Params, config: LlamaConfig, *, dropout_key: Array | None = None
) -> Bound:
    """Binds adapters that are applied together, each to the base with the updates of the preceding adapters.

    For example, an Aligner after a LoRA projects its tokens with the updated weights; an Aligner before a LoRA uses the
    base's weights. Prefixes have a softmax each, and their outputs are summed; at most one prefix of a layer may share
    the text's softmax (prompt and prefix tuning). The embeddings of prompt tuning do not attend to other prefixes.

    Args:
      adapters: the adapters in order.
      params: parameters of the base.
      config: configuration of the base.
      dropout_key: a `jax.random.key` of this training step; None applies no dropout.
    """
    all_bound = Bound()
    for index, adapter in enumerate(adapters):
        below = all_bound.on(params)
        for part in all_bound.adapted:
            below = dataclasses.replace(below, layers=_changed(below.layers, part, config.num_layers))
        key = None if dropout_key is None else jax.random.fold_in(dropout_key, index)
        bound = METHODS[adapter.method].bind(adapter.trainable, adapter.options, below, config, key)
        all_bound = Bound(
            adapted=(*all_bound.adapted, *bound.adapted),
            parameters={**all_bound.parameters, **bound.parameters},
            first_position=all_bound.first_position + bound.first_position,
        )
    return all_bound


def _changed(layers: Layers, part: Adapted, num_layers: int) -> Layers:
    """Applies the part's updates to the stacked layers; factors stay beside the weights."""

    def pad(leaf: Array) -> Array:
        widths = [(part.layers.start, num_layers - part.layers.stop), *[(0, 0)] * (leaf.ndim - 1)]
        return jnp.pad(leaf, widths)

    def over_all_layers(update: Update) -> Update:
        if isinstance(update, LowRank):
            # A prefix is projected without dropout.
            return dataclasses.replace(update, a=pad(update.a), b=pad(update.b), keys=None)
        return pad(update)

    return updated(layers, {name: over_all_layers(update) for name, update in part.updates.items()})

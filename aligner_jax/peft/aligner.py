"""Aligner (arXiv 2312.05503): one set of tokens shared by every adapted layer, and a gate per layer and head."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array

from aligner_jax.errors import InputError
from aligner_jax.model.attention import Prefix
from aligner_jax.model.llama import LlamaConfig, Params
from aligner_jax.peft.adapter import Options

DEFAULTS = {"num_tokens": 1, "start_layer": 2}
STRENGTH = "gates_ln"
"""The trained array in which the adapter's effect on each layer is linear."""


def check(options: Options, config: LlamaConfig) -> None:
    """Refuses options that cannot be had on this model.

    Raises:
      InputError: num_tokens below one, or start_layer outside the model.
    """
    num_tokens, start_layer = options["num_tokens"], options["start_layer"]
    if not isinstance(num_tokens, int) or num_tokens < 1:
        raise InputError(f"num_tokens is {num_tokens!r}, but an Aligner has at least one token")
    if not isinstance(start_layer, int) or not 0 <= start_layer < config.num_layers:
        raise InputError(f"start_layer is {start_layer!r}, but the model has layers 0 to {config.num_layers - 1}")


def shapes(options: Options, config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the trained arrays: p · d + (layers - start_layer) · heads numbers."""
    return {
        "tokens_pd": (options["num_tokens"], config.d_model),
        "gates_ln": (config.num_layers - options["start_layer"], config.num_heads),
    }


def init(options: Options, config: LlamaConfig, key: Array) -> dict[str, Array]:
    """Tokens from N(0, 1), gates at 0, float32: at first the model is the base, and only the gates have a gradient."""
    shape = shapes(options, config)
    return {"tokens_pd": jax.random.normal(key, shape["tokens_pd"]), "gates_ln": jnp.zeros(shape["gates_ln"])}


def bind(trainable: dict[str, Array], options: Options, params: Params, config: LlamaConfig) -> Prefix:
    """The prefix of every adapted layer, stacked: the shared tokens through each layer's own key and value projections.

    No norm and no rotation is applied to the tokens. Biases of the projections are part of them. With one token the
    keys cancel and are left at zero, uncomputed.

    Returns:
      A `Prefix` with leaves [l, 1, p, k, h] and gates [l, 1, n], l over the adapted layers.
    """
    layers = params.layers
    tokens_pd = trainable["tokens_pd"].astype(layers.k_ldkh.dtype)
    needs_keys = options["num_tokens"] > 1

    def project(weight_ldkh, bias_lkh, index):
        x_pkh = jnp.einsum("pd,dkh->pkh", tokens_pd, jax.lax.dynamic_index_in_dim(weight_ldkh, index, keepdims=False))
        if bias_lkh is not None:
            x_pkh += jax.lax.dynamic_index_in_dim(bias_lkh, index)
        return x_pkh

    # One layer at a time: a single product over a slice of the stack would copy the projections of almost all layers,
    # and so would the backward pass if it were not made to slice again.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def step(_, index):
        v_pkh = project(layers.v_ldkh, layers.v_bias_lkh, index)
        k_pkh = project(layers.k_ldkh, layers.k_bias_lkh, index) if needs_keys else jnp.zeros_like(v_pkh)
        return None, (k_pkh, v_pkh)

    _, (k_lpkh, v_lpkh) = jax.lax.scan(step, None, jnp.arange(options["start_layer"], config.num_layers))
    return Prefix(k_bpkh=k_lpkh[:, None], v_bpkh=v_lpkh[:, None], gate_bn=trainable["gates_ln"][:, None])

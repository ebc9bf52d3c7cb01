"""Projection of prefix tokens to keys and values of the adapted layers."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from aligner_jax.model.layers import Layer, run_layers
from aligner_jax.model.llama import LlamaConfig, Params, keys_values


def project_tokens(
    tokens_of: Callable[[Array], Float[Array, "p d"]],
    params: Params,
    config: LlamaConfig,
    start_layer: int,
    *,
    is_constant: bool,
) -> tuple[Float[Array, "l 1 p k h"], Float[Array, "l 1 p k h"]]:
    """Returns the keys and values of prefix tokens, stacked over the layers from `start_layer`.

    Tokens are neither normed nor rotated. Biases of the projections are included.

    Args:
      tokens_of: maps a layer's index among the adapted layers (traced) to its tokens in the model's dtype.
      params: parameters of the base.
      config: configuration of the base.
      start_layer: index of the first adapted layer.
      is_constant: True if no query is compared with the keys, as with a single token, whose key cancels in the softmax;
        the keys are then zero and not computed.
    """

    def step(_, layer: Layer):
        k_1pkh, v_1pkh = keys_values(layer.weights, tokens_of(layer.index - start_layer)[None])
        return None, (jnp.zeros_like(k_1pkh) if is_constant else k_1pkh, v_1pkh)

    # A single product over a slice of the stack would copy the projections of almost all layers, so layers are scanned.
    # Remat "full" slices again in the backward pass, which would otherwise keep such a copy.
    _, keys_and_values = run_layers(step, None, params.layers, range(start_layer, config.num_layers), remat="full")
    return keys_and_values

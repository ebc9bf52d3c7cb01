"""Prefix tokens through the key and value projections of the adapted layers."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from aligner_jax.model.layers import Layer, run_layers
from aligner_jax.model.llama import LlamaConfig, Params, keys_values


def project_tokens(
    tokens_of: Callable[[Array], Float[Array, "p d"]], params: Params, config: LlamaConfig, start_layer: int
) -> tuple[Float[Array, "l 1 p k h"], Float[Array, "l 1 p k h"]]:
    """Returns keys and values of a layer's tokens, for every layer from `start_layer` on, stacked.

    No norm and no rotation is applied to the tokens. Biases of the projections are part of them. With one token the
    keys cancel in the softmax and are left at zero, uncomputed.

    Args:
      tokens_of: from a layer's place among the adapted ones (a traced number) to its tokens, in the model's dtype.
    """
    needs_keys = jax.eval_shape(tokens_of, jax.ShapeDtypeStruct((), jnp.int32)).shape[0] > 1

    def step(_, layer: Layer):
        k_1pkh, v_1pkh = keys_values(layer.weights, tokens_of(layer.index - start_layer)[None])
        return None, (k_1pkh if needs_keys else jnp.zeros_like(k_1pkh), v_1pkh)

    # One layer at a time: a single product over a slice of the stack would copy the projections of almost all layers,
    # and so would the backward pass if it were not made to slice again.
    _, keys_and_values = run_layers(step, None, params.layers, range(start_layer, config.num_layers), remat="full")
    return keys_and_values

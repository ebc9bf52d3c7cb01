"""Prefix tokens through the key and value projections of the adapted layers."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from aligner_jax.model.llama import LlamaConfig, Params, layer_at
from aligner_jax.model.updates import project


def project_tokens(
    tokens_of: Callable[[Array], Float[Array, "p d"]], params: Params, config: LlamaConfig, start_layer: int
) -> tuple[Float[Array, "l 1 p k h"], Float[Array, "l 1 p k h"]]:
    """Keys and values of a layer's tokens, for every layer from `start_layer` on, stacked.

    No norm and no rotation is applied to the tokens. Biases of the projections are part of them. With one token the
    keys cancel in the softmax and are left at zero, uncomputed.

    Args:
      tokens_of: from a layer's place among the adapted ones (a traced number) to its tokens, in the model's dtype.
    """
    layers = params.layers
    needs_keys = jax.eval_shape(tokens_of, jax.ShapeDtypeStruct((), jnp.int32)).shape[0] > 1

    def projected(tokens_pd, weight_and_bias, index):
        weight_dkh, bias_kh = layer_at(weight_and_bias, index)
        x_pkh = project("pd,dkh->pkh", tokens_pd, weight_dkh)
        return x_pkh if bias_kh is None else x_pkh + bias_kh[None]

    # One layer at a time: a single product over a slice of the stack would copy the projections of almost all layers,
    # and so would the backward pass if it were not made to slice again.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def step(_, index):
        tokens_pd = tokens_of(index - start_layer)
        v_pkh = projected(tokens_pd, (layers.v_ldkh, layers.v_bias_lkh), index)
        k_pkh = jnp.zeros_like(v_pkh)
        if needs_keys:
            k_pkh = projected(tokens_pd, (layers.k_ldkh, layers.k_bias_lkh), index)
        return None, (k_pkh, v_pkh)

    _, (k_lpkh, v_lpkh) = jax.lax.scan(step, None, jnp.arange(start_layer, config.num_layers))
    return k_lpkh[:, None], v_lpkh[:, None]

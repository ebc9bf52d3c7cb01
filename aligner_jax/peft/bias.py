"""A bias of every layer's output or value projection (BitFit, arXiv 2106.10199, for one bias).

This method generalizes an Aligner of one token. Such an Aligner adds W_O (g ⊙ V_a), a vector of d elements, to the
attention of each layer, and the vectors of all layers together have only a few thousand parameters. This method trains
each layer's vector freely.
"""

import dataclasses
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array

from aligner_jax.model.layers import Adapted
from aligner_jax.model.llama import LlamaConfig, Params
from aligner_jax.peft.adapter import LayerOptions, Method, scaled
from aligner_jax.peft.bound import Bound
from aligner_jax.runtime.roofline import AdapterCost


@dataclasses.dataclass(frozen=True, kw_only=True)
class BiasOptions(LayerOptions):
    """Options of a bias.

    Attributes:
      target: the projection that has the bias.
    """

    target: Literal["o", "v"] = "o"


def shapes(options: BiasOptions, config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of the trained array: d (target "o") or k · h (target "v") elements per adapted layer."""
    num_layers = options.num_adapted(config)
    if options.target == "o":
        return {"o_bias_ld": (num_layers, config.d_model)}
    return {"v_bias_lkh": (num_layers, config.num_kv_heads, config.head_dim)}


def init(options: BiasOptions, config: LlamaConfig, key: Array) -> dict[str, Array]:
    """Returns zeros, so that the model equals the base."""
    return {name: jnp.zeros(shape) for name, shape in shapes(options, config).items()}


def bind(
    trainable: dict[str, Array],
    options: BiasOptions,
    params: Params,
    config: LlamaConfig,
    dropout_key: Array | None = None,
) -> Bound:
    """Returns the biases as updates of the fields with the same names."""
    return Bound(adapted=(Adapted(options.adapted(config), updates=dict(trainable)),))


def cost(options: BiasOptions, config: LlamaConfig) -> AdapterCost:
    """Returns the cost of the backward pass alone; additions are not counted."""
    return AdapterCost(start_layer=options.start_layer)


BIAS = Method(options=BiasOptions, shapes=shapes, init=init, bind=bind, cost=cost, with_strength=scaled(""))

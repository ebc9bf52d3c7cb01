"""A vector added to every layer's output or value projection: what one Aligner token is a small part of.

With one token an Aligner adds W_O (g ⊙ V_a) to each layer's attention, a vector of d numbers that its few thousand
parameters can choose only together. This method chooses each layer's freely (BitFit, arXiv 2106.10199, for one bias).
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
      target: the projection whose output is shifted.
    """

    target: Literal["o", "v"] = "o"


def shapes(options: BiasOptions, config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of the trained array: d numbers, or kv heads · head dim, for each adapted layer."""
    num_layers = options.num_adapted(config)
    if options.target == "o":
        return {"o_bias_ld": (num_layers, config.d_model)}
    return {"v_bias_lkh": (num_layers, config.num_kv_heads, config.head_dim)}


def init(options: BiasOptions, config: LlamaConfig, key: Array) -> dict[str, Array]:
    """Returns zeros: at first the model is the base."""
    return {name: jnp.zeros(shape) for name, shape in shapes(options, config).items()}


def bind(
    trainable: dict[str, Array],
    options: BiasOptions,
    params: Params,
    config: LlamaConfig,
    dropout_key: Array | None = None,
) -> Bound:
    """Returns the biases as updates of the fields of the same name."""
    return Bound(adapted=(Adapted(options.adapted(config), updates=dict(trainable)),))


def cost(options: BiasOptions, config: LlamaConfig) -> AdapterCost:
    """Additions are not counted."""
    return AdapterCost(start_layer=options.start_layer)


BIAS = Method(options=BiasOptions, shapes=shapes, init=init, bind=bind, cost=cost, with_strength=scaled(""))

"""A vector added to every layer's output or value projection: what one Aligner token is a small part of.

With one token an Aligner adds W_O (g ⊙ V_a) to each layer's attention, a vector of d numbers that its few thousand
parameters can choose only together. This method chooses each layer's freely (BitFit, arXiv 2106.10199, for one bias).
"""

import jax.numpy as jnp
from jaxtyping import Array

from aligner_jax.model.layers import Adapted
from aligner_jax.model.llama import LlamaConfig, Params
from aligner_jax.peft.adapter import Options
from aligner_jax.peft.bound import Bound
from aligner_jax.peft.options import adapted_layers, check_choice, check_start_layer

DEFAULTS = {"target": "o", "start_layer": 2}
"""target: the projection whose output is shifted, "o" or "v"."""
STRENGTH = ("",)
"""All of it, see `aligner`."""


def check(options: Options, config: LlamaConfig | None) -> None:
    """Refuses options that cannot be had on this model. Raises InputError: an unknown target, start_layer outside."""
    check_choice(options, "target", ("o", "v"))
    check_start_layer(options, config)


def shapes(options: Options, config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Shape of the trained array: d numbers, or kv heads · head dim, for each adapted layer."""
    num_layers = adapted_layers(options, config)
    if options["target"] == "o":
        return {"o_bias_ld": (num_layers, config.d_model)}
    return {"v_bias_lkh": (num_layers, config.num_kv_heads, config.head_dim)}


def init(options: Options, config: LlamaConfig, key: Array) -> dict[str, Array]:
    """Zeros, float32: at first the model is the base."""
    return {name: jnp.zeros(shape) for name, shape in shapes(options, config).items()}


def bind(
    trainable: dict[str, Array], options: Options, params: Params, config: LlamaConfig, dropout_key: Array | None = None
) -> Bound:
    """The biases as updates of the fields of the same name."""
    layers = range(options["start_layer"], config.num_layers)
    return Bound(adapted=(Adapted(layers, updates=dict(trainable)),))

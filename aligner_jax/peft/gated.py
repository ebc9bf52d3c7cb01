"""Gates of methods whose prefix has a softmax of its own."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from aligner_jax.files.fields import MAX_INTEGER
from aligner_jax.model.llama import LlamaConfig
from aligner_jax.peft.adapter import LayerOptions
from aligner_jax.runtime.fields import number
from aligner_jax.runtime.roofline import AdapterCost


@dataclasses.dataclass(frozen=True, kw_only=True)
class GatedOptions(LayerOptions):
    """Options of a method with a prefix in every adapted layer, scaled by the gates `gates_ln`.

    Attributes:
      num_tokens: p, the number of prefix tokens.
    """

    num_tokens: int = number(1, least=1, most=MAX_INTEGER)

    @property
    def is_constant(self) -> bool:
        """True if the prefix adds the same to a layer at every position, as a single token does."""
        return self.num_tokens == 1

    def weights[Gates: (Array, np.ndarray)](self, gates_ln: Gates) -> Gates:
        """Returns the factors of the prefix's outputs for the trained gates [l, n]."""
        return gates_ln


def gate_shape(kind: str, num_layers: int, config: LlamaConfig) -> tuple[int, int]:
    """Returns the shape of the trained gates, (layers, heads); axes along which all share a gate have size 1.

    Args:
      kind: "head" for one gate per layer and query head; "kv_head" for one per layer and kv head, so that the prefix
        can be folded exactly into a value bias; "layer" for one per layer; "shared_heads" for one per query head, the
        same in all layers; or "global" for one gate.
      num_layers: number of adapted layers.
      config: configuration of the model.
    """
    return {
        "head": (num_layers, config.num_heads),
        "kv_head": (num_layers, config.num_kv_heads),
        "layer": (num_layers, 1),
        "shared_heads": (1, config.num_heads),
        "global": (1, 1),
    }[kind]


def spread_gates(gates_ln: Float[Array, "l n"], num_layers: int, config: LlamaConfig) -> Float[Array, "l 1 n"]:
    """Broadcasts gates to every layer and query head, the shape of `Prefix.gate_bn` with a layer axis."""
    repeated_ln = jnp.repeat(gates_ln, config.num_heads // gates_ln.shape[1], axis=1)
    return jnp.broadcast_to(repeated_ln, (num_layers, config.num_heads))[:, None]


def gated_cost(options: GatedOptions, config: LlamaConfig) -> AdapterCost:
    """Returns the cost of a prefix that every adapted layer projects. A constant needs W_V alone, without keys."""
    projections = 1 if options.is_constant else 2
    return AdapterCost(
        start_layer=options.start_layer,
        num_tokens=1 if options.is_constant else options.num_tokens,
        bound_tokens=options.num_tokens,
        bind_weights=projections * config.d_model * config.num_kv_heads * config.head_dim,
    )

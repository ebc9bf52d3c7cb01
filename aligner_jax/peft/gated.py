"""Gates of the methods whose prefix has a softmax of its own: the shapes they come in, and how they weigh."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from aligner_jax.files.fields import MOST_INTEGER
from aligner_jax.model.llama import LlamaConfig
from aligner_jax.peft.adapter import LayerOptions
from aligner_jax.runtime.fields import number
from aligner_jax.runtime.roofline import AdapterCost


@dataclasses.dataclass(frozen=True, kw_only=True)
class GatedOptions(LayerOptions):
    """Options of a method with tokens before every adapted layer's text, and the gates `gates_ln` that weigh them.

    Attributes:
      num_tokens: p, tokens of the prefix.
    """

    num_tokens: int = number(1, least=1, most=MOST_INTEGER)

    def weights[Gates: (Array, np.ndarray)](self, gates_ln: Gates) -> Gates:
        """Returns the factors of the prefix's outputs, from the gates [l, n] as they are trained."""
        return gates_ln


def gate_shape(kind: str, num_layers: int, config: LlamaConfig) -> tuple[int, int]:
    """Returns the numbers of layers and of heads that have gates of their own.

    Args:
      kind: one gate for each layer and "head"; for each layer and "kv_head" (its query heads tied, so that the fold
        into a value bias is exact); for each "layer"; for each head and the same in all layers ("shared_heads"); or one
        for all ("global").
      num_layers: the number of adapted layers.
    """
    return {
        "head": (num_layers, config.num_heads),
        "kv_head": (num_layers, config.num_kv_heads),
        "layer": (num_layers, 1),
        "shared_heads": (1, config.num_heads),
        "global": (1, 1),
    }[kind]


def spread_gates(gates_ln: Float[Array, "l n"], num_layers: int, config: LlamaConfig) -> Float[Array, "l 1 n"]:
    """Returns the gates as a `Prefix` has them: one for every layer and query head, the same for all rows."""
    repeated_ln = jnp.repeat(gates_ln, config.num_heads // gates_ln.shape[1], axis=1)
    return jnp.broadcast_to(repeated_ln, (num_layers, config.num_heads))[:, None]


def gated_cost(options: GatedOptions, config: LlamaConfig) -> AdapterCost:
    """Cost of tokens that go through the projections of every adapted layer: W_V alone for one, whose key cancels."""
    projections = 1 if options.num_tokens == 1 else 2
    return AdapterCost(
        start_layer=options.start_layer,
        num_tokens=options.num_tokens,
        bind_weights=projections * config.d_model * config.num_kv_heads * config.head_dim,
    )

"""Gates in the shapes that the methods offer, and what the model takes: one a layer and query head."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from aligner_jax.model.llama import LlamaConfig

GATES = ("head", "kv_head", "layer", "shared_heads", "global")
"""One gate for each layer and head; layer and kv head (its query heads tied, so that the fold into a value bias is
exact); layer; head, the same in all layers; or one for all."""


def gate_shape(kind: str, num_layers: int, config: LlamaConfig) -> tuple[int, int]:
    """Layers and heads that have gates of their own."""
    return {
        "head": (num_layers, config.num_heads),
        "kv_head": (num_layers, config.num_kv_heads),
        "layer": (num_layers, 1),
        "shared_heads": (1, config.num_heads),
        "global": (1, 1),
    }[kind]


def spread_gates(gates: Float[Array, "l n"], num_layers: int, config: LlamaConfig) -> Float[Array, "l 1 n"]:
    """The gates as a `Prefix` has them: every layer's and query head's own, for all rows."""
    repeated_ln = jnp.repeat(gates, config.num_heads // gates.shape[1], axis=1)
    return jnp.broadcast_to(repeated_ln, (num_layers, config.num_heads))[:, None]

"""Updates of a layer's weights, and products with updated weights (shape legend: llama.py).

A weight in `Layers` is an array or another type of leaf, and `project` dispatches on its type. An adapter that changes
weights has an update for each field of `Layers` that it changes, stacked over the layers like the weights. The scan
over layers places the update beside the frozen weight, which is never copied.
"""

import dataclasses
from collections.abc import Mapping

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from aligner_jax.model.params import Layers
from aligner_jax.model.quantized import Quantized, Weight, product


@flax.struct.dataclass
class LowRank:
    """Factors of W + scale · A B (LoRA, arXiv 2106.09685), float32.

    With a batch axis after l, every row has factors of its own.

    Attributes:
      a: [l, *summed axes of W, r].
      b: [l, r, *other axes of W].
      scale: factor of the product A B.
      dropout: dropout rate of the low-rank path's inputs; ignored without keys.
      keys: a `jax.random.key` per layer, [l], for training with dropout.
    """

    a: Float[Array, "l *rows_in r"]
    b: Float[Array, "l *rows_r out"]
    scale: float = flax.struct.field(pytree_node=False, default=1.0)
    dropout: float = flax.struct.field(pytree_node=False, default=0.0)
    keys: Array | None = None


@flax.struct.dataclass
class LowRankWeight:
    """One layer's weight with a `LowRank` update; the weight may itself have one."""

    weight: "Weight | LowRankWeight"
    update: LowRank


type Update = LowRank | Array
"""Update of one field of `Layers`: factors, or an array that is added to the parameter (or replaces a missing bias).

A bias may have a batch axis, [l, b, …].
"""
type Updates = Mapping[str, Update]


def updated(layer: Layers, updates: Updates) -> Layers:
    """Applies one layer's updates: places factors beside the weights, and adds arrays. Leaves have no layer axis."""

    def put(weight, update: Update):
        if isinstance(update, LowRank):
            return LowRankWeight(weight, update)
        if isinstance(weight, LowRankWeight):
            return dataclasses.replace(weight, weight=put(weight.weight, update))
        if weight is None:
            return update
        # The sum is float32 and rounded once.
        total = jnp.broadcast_to(weight, update.shape).astype(jnp.float32) + update.astype(jnp.float32)
        return total.astype(weight.dtype)

    changed = {name: put(getattr(layer, name), update) for name, update in updates.items()}
    return dataclasses.replace(layer, **changed)


def project(equation: str, x: Array, weight: Weight | LowRankWeight) -> Array:
    """Returns einsum(equation, x, weight) in x's dtype, for any type of leaf in `Layers`.

    Args:
      equation: einsum equation. The result's axes are x's axes that are not summed over, then the weight's, in order.
        If the weight has an update, x's first axis is b. No axis of the weight is b, t or r.
      x: activations.
      weight: weight of one layer.
    """
    if isinstance(weight, Quantized):
        return product(equation, x, weight)
    if not isinstance(weight, LowRankWeight):
        return jnp.einsum(equation, x, weight)
    update = weight.update
    inputs, result = equation.split("->")
    of_x, of_weight = inputs.split(",")
    summed = "".join(axis for axis in of_weight if axis in of_x)
    rows = "b" if update.a.ndim > len(summed) + 1 else ""
    others = "".join(axis for axis in of_weight if axis not in of_x)
    low = "".join(axis for axis in of_x if axis not in summed) + "r"
    seen = x
    if update.keys is not None and update.dropout:
        kept = jax.random.bernoulli(update.keys, 1 - update.dropout, x.shape)
        seen = jnp.where(kept, x / (1 - update.dropout), 0).astype(x.dtype)
    down = jnp.einsum(f"{of_x},{rows}{summed}r->{low}", seen, update.a.astype(x.dtype))
    up = jnp.einsum(f"{low},{rows}r{others}->{result}", down, update.b.astype(x.dtype))
    return project(equation, x, weight.weight) + up * jnp.asarray(update.scale, up.dtype)

"""What may be added to a layer's weights, and products that know how (shape legend: llama.py).

A weight in `Layers` is an array, or a type that knows how to multiply: `project` asks the leaf. An adapter that changes
weights hands the model an update for each field of `Layers` that it changes, stacked over the layers like the weights;
the scan over layers takes it along and puts it beside the frozen weight, which is never copied.
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
    """The factors of W + scale · A B (LoRA, arXiv 2106.09685), float32.

    Attributes:
      a: [l, *the axes of x that W sums over, r].
      b: [l, r, *the other axes of W].
      scale: what the product is multiplied by.
      dropout: share of x's entries that the low-rank path does not see; only where there are keys.
      keys: [l] of `jax.random.key`, in training with dropout.

    With a batch axis before the others (after l), every row has its own factors.
    """

    a: Float[Array, "l *rows_in r"]
    b: Float[Array, "l *rows_r out"]
    scale: float = flax.struct.field(pytree_node=False, default=1.0)
    dropout: float = flax.struct.field(pytree_node=False, default=0.0)
    keys: Array | None = None


@flax.struct.dataclass
class LowRankWeight:
    """One layer's weight, or one that has factors already, beside its `LowRank` factors."""

    weight: "Weight | LowRankWeight"
    update: LowRank


type Update = LowRank | Array
"""Of one field of `Layers`: factors, or an array that is added to the parameter (or stands for a missing bias).

A bias with a batch axis, [l, b, …], gives every row its own.
"""
type Updates = Mapping[str, Update]


def updated(layer: Layers, updates: Updates) -> Layers:
    """Returns the layer with its updates put beside its weights or added to them; neither has a layer axis any more."""

    def put(weight, update: Update):
        if isinstance(update, LowRank):
            return LowRankWeight(weight, update)
        if isinstance(weight, LowRankWeight):
            return dataclasses.replace(weight, weight=put(weight.weight, update))
        if weight is None:
            return update
        # A float32 sum, rounded once.
        total = jnp.broadcast_to(weight, update.shape).astype(jnp.float32) + update.astype(jnp.float32)
        return total.astype(weight.dtype)

    changed = {name: put(getattr(layer, name), update) for name, update in updates.items()}
    return dataclasses.replace(layer, **changed)


def project(equation: str, x: Array, weight: Weight | LowRankWeight) -> Array:
    """einsum(equation, x, weight) for any leaf that `Layers` may hold, in x's dtype.

    Args:
      equation: x's axes begin with b where there is an update, and no axis of the weight is b, t or r. The result's
        are x's that are not summed over, then the weight's, each in their order.
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

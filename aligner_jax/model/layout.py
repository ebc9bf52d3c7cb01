"""The order in which arrays lie in a device's memory."""

import jax
from jax.experimental.layout import Layout, with_layout_constraint

from aligner_jax.model.logical import Axes, num_parts

LANES = 128
"""Numbers in a row of a TPU's vector register."""


def as_stored(x: jax.Array, axes: Axes | None = None) -> jax.Array:
    """Returns the same array; on TPUs ordered as an argument of its shape, where the compiler might order it otherwise.

    Args:
      axes: the logical axes that split it, where some do.
    """
    sizes = [size // num_parts(axis) for size, axis in zip(x.shape, axes or (None,) * x.ndim, strict=True)]
    order = list(range(x.ndim))
    # The last axis lies along the lanes, unless only the one before it fills them.
    if x.ndim > 1 and sizes[-1] % LANES and not sizes[-2] % LANES:
        order[-2:] = reversed(order[-2:])

    def keep(x: jax.Array) -> jax.Array:
        return with_layout_constraint(x, Layout(tuple(order)))

    return jax.lax.platform_dependent(x, tpu=keep, default=lambda x: x)

"""Memory layout of arrays on a device."""

from collections.abc import Sequence

import jax
from jax.experimental.layout import Layout, with_layout_constraint

from aligner_jax.model.logical import Axes, num_parts

LANES = 128
"""Lanes of a TPU's vector register."""


def swaps_last(sizes: Sequence[int]) -> bool:
    """Returns True if TPUs store arrays of these sizes with the second to last axis along the lanes.

    They lay the last axis along the lanes, unless only the second to last fills them.
    """
    return len(sizes) > 1 and sizes[-1] % LANES != 0 and sizes[-2] % LANES == 0


def as_stored(x: jax.Array, axes: Axes | None = None) -> jax.Array:
    """Constrains an array, on TPUs, to the memory layout that an argument of its shape has.

    Args:
      x: any array.
      axes: logical axes that shard it, unless the mesh does not divide the array; None if none do.
    """
    parts = [num_parts(axis) for axis in axes or (None,) * x.ndim]
    is_divided = not any(size % number for size, number in zip(x.shape, parts, strict=True))
    sizes = [size // number if is_divided else size for size, number in zip(x.shape, parts, strict=True)]
    order = list(range(x.ndim))
    if swaps_last(sizes):
        order[-2:] = reversed(order[-2:])

    def keep(x: jax.Array) -> jax.Array:
        return with_layout_constraint(x, Layout(tuple(order)))

    return jax.lax.platform_dependent(x, tpu=keep, default=lambda x: x)

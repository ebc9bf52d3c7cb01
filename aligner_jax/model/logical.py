"""Logical axes: the model names the axes of its arrays, and rules say which axes of a device mesh split them.

Rules are Flax's (`flax.linen.logical_axis_rules`) and the mesh is JAX's (`jax.set_mesh`); `runtime.sharding` sets both.
Without a mesh in context everything here does nothing.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from flax.linen.spmd import logical_to_mesh_axes
from jax.sharding import PartitionSpec

Axes = tuple[str | None, ...]
"""A logical name for each axis of an array; None: not split."""


def spec(axes: Axes) -> PartitionSpec:
    """The mesh axes that the rules in context give these logical axes."""
    return logical_to_mesh_axes(axes) or PartitionSpec()


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """The same array, split over the mesh in context as the rules say, along the axes that the mesh divides."""
    if not is_split():
        return x
    whole = [size % num_parts(axis) for axis, size in zip(axes, x.shape, strict=True)]
    dividing = tuple(None if rest else axis for axis, rest in zip(axes, whole, strict=True))
    return jax.lax.with_sharding_constraint(x, spec(dividing))


def replicated(x: jax.Array) -> jax.Array:
    """The same array, whole on every device of the mesh in context, so that every process can read it."""
    return jax.lax.with_sharding_constraint(x, PartitionSpec()) if is_split() else x


def mesh_axes(name: str | None) -> tuple[str, ...]:
    """The axes of the mesh in context that split a logical axis; none where it is not split, or there is no mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    found = (*spec((name,)), None)[0] if mesh.size > 1 else None
    axes = (found,) if isinstance(found, str) else found or ()
    return tuple(axis for axis in axes if mesh.shape[axis] > 1)


def num_parts(name: str | None) -> int:
    """How many parts a logical axis is split into."""
    shape = jax.sharding.get_abstract_mesh().shape
    return math.prod(shape[axis] for axis in mesh_axes(name))


def on_each_device(function: Callable[..., Any], in_axes: Any, out_axes: Any) -> Callable[..., Any]:
    """The function applied to each device's part of its arguments, for what the compiler cannot split by itself.

    Args:
      in_axes: for each argument a pytree of `Axes`, as `jax.shard_map` takes specs; None for what is None.
      out_axes: the same of the result.
    """
    if not is_split():
        return function
    as_specs = lambda tree: jax.tree.map(spec, tree, is_leaf=_is_axes)  # noqa: E731
    # The bodies hold kernels, whose results carry no record of the mesh axes they vary over.
    return jax.shard_map(function, in_specs=as_specs(in_axes), out_specs=as_specs(out_axes), check_vma=False)


def _is_axes(tree: Any) -> bool:
    # A named tuple is a pytree of axes, not the axes of one array.
    return type(tree) is tuple and all(axis is None or isinstance(axis, str) for axis in tree)


def is_split() -> bool:
    """Whether there is a mesh in context, and it is the compiler that splits."""
    mesh = jax.sharding.get_abstract_mesh()
    # Inside `on_each_device` the axes are manual already.
    return mesh.size > 1 and not mesh.manual_axes

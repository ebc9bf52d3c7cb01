"""Logical axes: the model names the axes of its arrays, and rules map these names to axes of a device mesh.

The rules are Flax's (`flax.linen.logical_axis_rules`) and the mesh is JAX's (`jax.set_mesh`); `runtime.sharding` sets
both. Without a mesh in context, the functions of this module do nothing.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from flax.linen.spmd import logical_to_mesh_axes
from jax.sharding import PartitionSpec

Axes = tuple[str | None, ...]
"""A logical name for each axis of an array; None for axes that are not split."""


def spec(axes: Axes) -> PartitionSpec:
    """Maps logical axes to mesh axes by the rules in context."""
    return logical_to_mesh_axes(axes) or PartitionSpec()


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Constrains an array's sharding by the rules in context; axes that the mesh does not divide are not split."""
    if not is_split():
        return x
    whole = [size % num_parts(axis) for axis, size in zip(axes, x.shape, strict=True)]
    dividing = tuple(None if rest else axis for axis, rest in zip(axes, whole, strict=True))
    return jax.lax.with_sharding_constraint(x, spec(dividing))


def replicated(x: jax.Array) -> jax.Array:
    """Replicates an array over the mesh in context, so that every process can read it."""
    return jax.lax.with_sharding_constraint(x, PartitionSpec()) if is_split() else x


def mesh_axes(name: str | None) -> tuple[str, ...]:
    """Returns the mesh axes that split a logical axis; empty if nothing splits it."""
    mesh = jax.sharding.get_abstract_mesh()
    found = (*spec((name,)), None)[0] if mesh.size > 1 else None
    axes = (found,) if isinstance(found, str) else found or ()
    return tuple(axis for axis in axes if mesh.shape[axis] > 1)


def num_parts(name: str | None) -> int:
    """Returns the number of parts that a logical axis is split into."""
    shape = jax.sharding.get_abstract_mesh().shape
    return math.prod(shape[axis] for axis in mesh_axes(name))


def on_each_device(function: Callable[..., Any], in_axes: Any, out_axes: Any) -> Callable[..., Any]:
    """Returns `function` mapped over each device's shards, for operations that the compiler cannot split.

    Args:
      function: function of shards.
      in_axes: a pytree of `Axes` per argument, like the specs of `jax.shard_map`; None for arguments that are None.
      out_axes: the same for the result.
    """
    if not is_split():
        return function
    as_specs = lambda tree: jax.tree.map(spec, tree, is_leaf=_is_axes)  # noqa: E731
    # Results of Pallas kernels do not record the mesh axes that they vary over.
    return jax.shard_map(function, in_specs=as_specs(in_axes), out_specs=as_specs(out_axes), check_vma=False)


def _is_axes(tree: Any) -> bool:
    # A named tuple is a pytree of `Axes`, not the `Axes` of one array.
    return type(tree) is tuple and all(axis is None or isinstance(axis, str) for axis in tree)


def is_split() -> bool:
    """Returns True if there is a mesh in context whose axes the compiler splits."""
    mesh = jax.sharding.get_abstract_mesh()
    # Inside `on_each_device` the axes are manual.
    return mesh.size > 1 and not mesh.manual_axes

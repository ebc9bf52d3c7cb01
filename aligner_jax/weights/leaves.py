"""Builds `Params` leaf by leaf, the largest first. A leaf is on its devices before the next one is made."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from aligner_jax.errors import InputError
from aligner_jax.model.config import LlamaConfig
from aligner_jax.model.params import Layers, Params, Spec, param_specs

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(jnp.bfloat16), "float16": np.dtype(np.float16)}

type Shardings = Params | Callable[[LlamaConfig], Params | None] | None
"""A `Params` with a NamedSharding in place of every array, or a function from the model's configuration to one:
`functools.partial(param_shardings, mesh=mesh)`. The configuration is known only once the files are opened."""

type Finish = Callable[[str, jax.Array], Any] | None
"""Called with a leaf's name ("q_ldnh") and array as soon as it is on its devices. The result replaces the array."""


def leaf_specs(config: LlamaConfig) -> dict[str, Spec]:
    """Returns the specs of a model's parameters by name, in the order of `Params`."""
    return {leaf: spec for leaf, spec in _named(param_specs(config)).items() if isinstance(spec, Spec)}


def check_dtype(dtype: str) -> np.dtype:
    """Returns the dtype of that name. Raises InputError unless parameters can have it."""
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    return DTYPES[dtype]


def build_params(
    config: LlamaConfig,
    make: Callable[[str, Spec, NamedSharding | None], jax.Array],
    *,
    shardings: Shardings = None,
    finish: Finish = None,
) -> Params:
    """Builds a model's parameters leaf by leaf.

    A leaf that `finish` shrinks or drops is released before the next one is made. So at most one leaf has its full size
    at a time. The largest leaves come first.

    Args:
      make: returns the array of a leaf from its name, spec and sharding (None without shardings).

    Raises:
      InputError: the shardings have other leaves than the model.
    """
    specs = leaf_specs(config)
    named: dict[str, NamedSharding] = {}
    tree = shardings(config) if callable(shardings) else shardings
    if tree is not None:
        named = {leaf: sharding for leaf, sharding in _named(tree).items() if isinstance(sharding, NamedSharding)}
        if named.keys() != specs.keys():
            other = min(named.keys() ^ specs.keys())
            raise InputError(f"the shardings are of another model: {other} is in one of the two only")
    leaves: dict[str, Any] = {}
    for leaf in sorted(specs, key=lambda leaf: math.prod(specs[leaf].shape), reverse=True):
        array = make(leaf, specs[leaf], named.get(leaf))
        if finish is not None:
            array = jax.block_until_ready(finish(leaf, array))
        leaves[leaf] = array
        del array
    layers = Layers(**{field.name: leaves.pop(field.name, None) for field in dataclasses.fields(Layers)})
    return Params(layers=layers, **leaves)


def make_on_devices(
    shape: tuple[int, ...],
    sharding: NamedSharding,
    dtype: np.dtype,
    parts: Callable[[Sequence[Sequence[slice]]], list[np.ndarray]],
) -> jax.Array:
    """Returns an array of which this process makes only the parts that its own devices hold.

    All parts are requested in one call, so that rows they share are read once. A part that several devices hold is
    requested once. To limit host memory, the array is made in blocks along an axis that is not split, as many blocks as
    there are parts: the host holds about the size of one part. (`jax.make_array_from_callback` makes all parts before
    it places any, and makes a part again for every device that holds it.)

    Args:
      parts: returns the parts at the indexes that it is called with.
    """
    holders: dict[tuple[tuple[int, int], ...], list[Any]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        assert index is not None
        ends = tuple(cut.indices(size)[:2] for cut, size in zip(index, shape, strict=True))
        holders.setdefault(ends, []).append(device)
    axis = next((axis for axis, size in enumerate(shape) if all(ends[axis] == (0, size) for ends in holders)), None)
    blocks = [slice(None)] if axis is None or not holders else _blocks(shape[axis], len(holders))
    held: dict[Any, list[jax.Array]] = {device: [] for devices in holders.values() for device in devices}

    def hold(hosts: list[np.ndarray]) -> None:
        for host, devices in zip(hosts, holders.values(), strict=True):
            for device in devices:
                held[device].append(jax.device_put(host, device))
        jax.block_until_ready(list(held.values()))

    for block in blocks:
        hold(parts([[block if at == axis else slice(*one) for at, one in enumerate(ends)] for ends in holders]))
    return join_blocks(shape, sharding, dtype, held, axis or 0)


def join_blocks(
    shape: tuple[int, ...], sharding: NamedSharding, dtype: np.dtype, held: dict[Any, list[jax.Array]], axis: int
) -> jax.Array:
    """Joins the blocks that the devices of this process hold, along an axis that is not split, to one array.

    Args:
      held: blocks in their order, by device. The caller must not use them afterwards.
    """
    arrays = _joined(held, axis)
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays, dtype=dtype)


def _joined(held: dict[Any, list[jax.Array]], axis: int) -> list[jax.Array]:
    """Joins the blocks of every device on that device, in one program for all devices, which is compiled once."""
    number = max(map(len, held.values()), default=0)
    if number <= 1:
        return [blocks[0] for blocks in held.values()]
    mesh, split = Mesh(np.array(list(held)), ("device",)), PartitionSpec("device")
    arguments = []
    for blocks in zip(*held.values(), strict=True):
        rows, *rest = blocks[0].shape
        shape = (rows * len(held), *rest)
        arguments.append(jax.make_array_from_single_device_arrays(shape, NamedSharding(mesh, split), blocks))
    held.clear()
    join = jax.shard_map(lambda *blocks: jnp.concatenate(blocks, axis), mesh=mesh, in_specs=split, out_specs=split)
    with jax.set_mesh(mesh):
        joined = jax.block_until_ready(jax.jit(join)(*arguments))
    return [shard.data for shard in joined.addressable_shards]


def _blocks(size: int, number: int) -> list[slice]:
    """Divides an axis into at most that many blocks, whose lengths differ by at most one."""
    ends = sorted({size * i // number for i in range(number + 1)})
    return [slice(*pair) for pair in itertools.pairwise(ends)]


def _named(params: Params) -> dict[str, Any]:
    return {**vars(params), **vars(params.layers)}

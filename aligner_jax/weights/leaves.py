"""`Params` out of its leaves, one after the other and the largest first, each where it belongs before the next."""

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

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(jnp.bfloat16)}

type Shardings = Params | Callable[[LlamaConfig], Params | None] | None
"""A `Params` with a NamedSharding in place of every array, or what makes one of the model's configuration, which is
known only from its files: `functools.partial(param_shardings, mesh=mesh)`."""

type Finish = Callable[[str, jax.Array], Any] | None
"""Called with each leaf's name ("q_ldnh") and array as soon as it is on its devices; its result takes its place."""


def leaf_specs(config: LlamaConfig) -> dict[str, Spec]:
    """The parameters of a model by name, in the order of `Params`."""
    return {leaf: spec for leaf, spec in _named(param_specs(config)).items() if isinstance(spec, Spec)}


def check_dtype(dtype: str) -> np.dtype:
    """Raises InputError unless dtype is one that parameters can be held in."""
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
    """A model's parameters, made leaf by leaf.

    Since the largest leaves come first, what `finish` makes smaller (or away with) is never there at full size all at
    once: at most one leaf is, and it is given up before the next is made.

    Args:
      make: from a leaf's name, its spec and its sharding (None without shardings) to its array.

    Raises:
      InputError: the shardings are of a model with other leaves.
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
    """An array of which this process makes only what its own devices hold.

    `parts`, which makes the parts at some indexes, is asked for all that this process needs at once, so that what they
    share need be read once, and for each part once, even where several devices hold it. But it is asked block by block
    of an axis that is not split, as many as there are parts: so the host has no more than one part's worth at a time.
    (`jax.make_array_from_callback` makes all of them first, and each as often as it is held.)
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
    """An array of which each device of this process holds some blocks along an axis that is not split.

    Args:
      held: by device, the blocks in their order, which are given up.
    """
    arrays = _joined(held, axis)
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays, dtype=dtype)


def _joined(held: dict[Any, list[jax.Array]], axis: int) -> list[jax.Array]:
    """Every device's blocks as one array on it. One program for all of them, which is compiled once."""
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
    """An axis in that many blocks, or fewer, that differ by one at most in their length."""
    ends = sorted({size * i // number for i in range(number + 1)})
    return [slice(*pair) for pair in itertools.pairwise(ends)]


def _named(params: Params) -> dict[str, Any]:
    return {**vars(params), **vars(params.layers)}

"""`Params` out of its leaves, one after the other and the largest first, each where it belongs before the next."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, SingleDeviceSharding

from aligner_jax.errors import InputError
from aligner_jax.model.config import LlamaConfig
from aligner_jax.model.params import Layers, Params, Spec, param_specs

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(jnp.bfloat16)}

type Shardings = Params | Callable[[LlamaConfig], Params] | None
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
    if shardings is not None:
        tree = shardings(config) if not isinstance(shardings, Params) else shardings
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
    part: Callable[[Sequence[slice]], np.ndarray],
) -> jax.Array:
    """An array of which this process makes only what its own devices hold.

    `part` is called once for each distinct index, even where several devices hold the same. Its result is on the
    devices before it is called again, so that the host has one at a time. (`jax.make_array_from_callback` makes all
    first, and each as often as it is held.)
    """
    devices: dict[tuple[tuple[int, int], ...], list[Any]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        assert index is not None
        ends = tuple(cut.indices(size)[:2] for cut, size in zip(index, shape, strict=True))
        devices.setdefault(ends, []).append(device)
    arrays = []
    for ends, holders in devices.items():
        host = part([slice(*each) for each in ends])
        held = [jax.device_put(host, SingleDeviceSharding(one, memory_kind=sharding.memory_kind)) for one in holders]
        del host
        arrays += jax.block_until_ready(held)
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays, dtype=dtype)


def _named(params: Params) -> dict[str, Any]:
    return {**vars(params), **vars(params.layers)}

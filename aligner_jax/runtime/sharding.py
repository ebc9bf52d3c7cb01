"""The device mesh, and which of its axes split what: (data, fsdp), parameters split over fsdp and rows over both."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from flax.linen import logical_axis_rules
from flax.linen.spmd import logical_to_mesh_axes
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from aligner_jax.errors import InputError
from aligner_jax.model.config import LlamaConfig
from aligner_jax.model.params import Params, is_spec, param_specs

type Rules = tuple[tuple[str, str | tuple[str, ...] | None], ...]

RULES: Rules = (("batch", ("data", "fsdp")), ("embed", "fsdp"))
"""Logical axis → mesh axes. A name that is missing is not split: adapters and their optimizer state are replicated."""


def make_mesh(*, data: int = 1, fsdp: int = -1, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of (data, fsdp).

    Args:
      data: replicas of the parameters.
      fsdp: devices that the parameters of one replica are split over. One of the two may be -1: as many as there are.
      devices: `jax.Device`s; by default all.

    Raises:
      InputError: the two do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = np.array([data, fsdp])
    if (sizes == -1).sum() == 1:
        sizes[sizes == -1] = len(devices) // max(1, -int(sizes.prod()))
    if sizes.min() < 1 or sizes.prod() != len(devices):
        raise InputError(f"a mesh of data={data} and fsdp={fsdp} does not fit {len(devices)} devices")
    return Mesh(np.array(devices).reshape(sizes), ("data", "fsdp"))


@contextlib.contextmanager
def use(mesh: Mesh, rules: Rules = RULES) -> Iterator[None]:
    """Puts mesh and rules in context: what is traced inside is split by them."""
    with jax.set_mesh(mesh), logical_axis_rules(rules):
        yield


def param_shardings(config: LlamaConfig, mesh: Mesh, rules: Rules = RULES) -> Params:
    """A `Params` with a NamedSharding in place of every array.

    Raises:
      InputError: a mesh axis does not divide the axis it would split.
    """

    def sharding(spec):
        mesh_axes = logical_to_mesh_axes(spec.axes, rules) or PartitionSpec()
        named = NamedSharding(mesh, mesh_axes)
        try:
            named.shard_shape(spec.shape)
        except ValueError as error:
            axes = ", ".join(f"{name} {size}" for name, size in zip(spec.axes, spec.shape, strict=True))
            raise InputError(f"a mesh of {dict(mesh.shape)} does not divide a parameter with axes {axes}") from error
        return named

    return jax.tree.map(sharding, param_specs(config), is_leaf=is_spec)


def batch_sharding(mesh: Mesh, rules: Rules = RULES) -> NamedSharding:
    """Of arrays whose first axis is the batch."""
    return NamedSharding(mesh, logical_to_mesh_axes(("batch",), rules) or PartitionSpec())


def replicated(mesh: Mesh) -> NamedSharding:
    """Of arrays that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())

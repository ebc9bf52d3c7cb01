"""The device mesh, (data, fsdp, tensor), and which of its axes split which of the model's logical axes."""

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from flax.linen import logical_axis_rules
from flax.linen.spmd import logical_to_mesh_axes
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from aligner_jax.errors import InputError
from aligner_jax.model.config import LlamaConfig
from aligner_jax.model.params import Params, is_spec, param_specs
from aligner_jax.model.quantized import Quantization
from aligner_jax.runtime.config import MeshConfig
from aligner_jax.runtime.fields import did_you_mean

AXES = ("data", "fsdp", "tensor")

type Rules = tuple[tuple[str, str | tuple[str, ...] | None], ...]

RULES: Rules = (
    ("batch", ("data", "fsdp")),
    ("embed", "fsdp"),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("mlp", "tensor"),
    ("vocab", "tensor"),
)
"""Logical axis → mesh axes. A name that is missing is not split: adapters and their optimizer state are replicated.

"embed" is split for storage; a layer's weights are gathered along it where they are used.
"""


def make_mesh(
    *, data: int = 1, fsdp: int = -1, tensor: int = 1, slices: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh of (data, fsdp, tensor). Neighbours along tensor, and then along fsdp, are neighbours in the network.

    Args:
      data: replicas of the parameters.
      fsdp: devices that the parameters of one replica are split over for storage.
      tensor: devices that heads, MLP and vocabulary are split over. One of the three may be -1: as many as there are.
      slices: groups of devices with a fast network within each only (TPU slices, joined by the data centre's network);
        they are replicas of each other, so `data` is a multiple.
      devices: `jax.Device`s; by default all.

    Raises:
      InputError: the three do not multiply to the number of devices, the slices do not divide the replicas or are not
        those of the devices, or the devices are no box of a TPU's network.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = np.array([data, fsdp, tensor])
    if (sizes == -1).sum() == 1:
        sizes[sizes == -1] = len(devices) // max(1, -int(sizes.prod()))
    wanted = f"a mesh of data={data}, fsdp={fsdp} and tensor={tensor}"
    if sizes.min() < 1 or sizes.prod() != len(devices):
        raise InputError(f"{wanted} does not fit {len(devices)} devices")
    if slices < 1 or sizes[0] % slices:
        raise InputError(f"{wanted} does not fit {slices} slices, which must divide its {sizes[0]} replicas")
    return Mesh(_arranged(devices, tuple(map(int, sizes)), slices), AXES)


def _arranged(devices: list[Any], sizes: tuple[int, ...], slices: int) -> np.ndarray:
    if slices > 1:
        within = (sizes[0] // slices, *sizes[1:])
        has_slices = all(getattr(device, "slice_index", None) is not None for device in devices)
        # Hosts without slices of their own (CPUs) stand in for them by process.
        of_each = Counter(device.slice_index if has_slices else device.process_index for device in devices)
        if len(of_each) != slices or len(set(of_each.values())) > 1:
            counts = ", ".join(str(count) for _, count in sorted(of_each.items()))
            raise InputError(f"config.mesh.slices is {slices}, but the devices come in groups of {counts}")
        return mesh_utils.create_hybrid_device_mesh(within, (slices, 1, 1), devices, process_is_granule=not has_slices)
    if len(devices) > 1 and devices[0].platform == "tpu":
        try:
            return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
        except AssertionError as error:
            # JAX asserts that they fill the box of their coordinates.
            raise InputError(
                f"these {len(devices)} devices are no box of the TPU's network: take so many that are (--devices)"
            ) from error
    return np.array(devices).reshape(sizes)


def describe(mesh: Mesh) -> str:
    """In words: how many devices of what kind, and how each axis splits them."""
    axes = " × ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1) or "one device"
    return f"{mesh.size} of {mesh.devices.flat[0].device_kind}, {axes}"


def mesh_of(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh that a config names, of these devices or all.

    Raises:
      InputError: it does not fit the devices.
    """
    return make_mesh(data=config.data, fsdp=config.fsdp, tensor=config.tensor, slices=config.slices, devices=devices)


def rules_of(config: MeshConfig) -> Rules:
    """The default rules with those of a config in their places.

    Raises:
      InputError: a rule is of no logical axis or names no axis of the mesh, or two rules cannot go together.
    """
    rules = dict(RULES)
    for name, text in config.rules.items():
        if name not in rules:
            raise InputError(f"config.mesh.rules.{name} is of no logical axis; {did_you_mean(name, rules)}")
        axes = () if text == "none" else tuple(axis.strip() for axis in text.split(","))
        unknown = [axis for axis in axes if axis not in AXES]
        if unknown:
            raise InputError(
                f"config.mesh.rules.{name} is {text!r}, but {unknown[0]!r} is not an axis of the mesh; "
                f"there are {', '.join(AXES)}, and none"
            )
        rules[name] = axes or None
    _check_together({name: (axes,) if isinstance(axes, str) else axes or () for name, axes in rules.items()})
    return tuple(rules.items())


def _check_together(rules: dict[str, tuple[str, ...]]) -> None:
    # Each device attends with its own heads, and sums over the vocabulary's axes what is of its own rows: the wrong
    # heads would meet, and sums of different rows, without an error.
    if rules["heads"] != rules["kv_heads"]:
        heads, kv_heads = (",".join(rules[name]) or "none" for name in ("heads", "kv_heads"))
        raise InputError(
            f"config.mesh.rules.heads is {heads!r} and config.mesh.rules.kv_heads {kv_heads!r}, but queries and the "
            "keys they read are split alike"
        )
    if both := [axis for axis in rules["batch"] if axis in rules["vocab"]]:
        raise InputError(
            f"config.mesh.rules.batch and config.mesh.rules.vocab both split over {both[0]!r}, but a device needs the "
            "whole vocabulary's sums of its own rows"
        )


@contextlib.contextmanager
def use(mesh: Mesh, rules: Rules = RULES) -> Iterator[None]:
    """Puts mesh and rules in context: what is traced inside is split by them."""
    with jax.set_mesh(mesh), logical_axis_rules(rules):
        yield


def param_shardings(
    config: LlamaConfig, mesh: Mesh, rules: Rules = RULES, quantization: Quantization | None = None
) -> Params:
    """A `Params` with a NamedSharding in place of every array.

    Scales are split as their values are, or whole on every device of a mesh that does not divide them.

    Raises:
      InputError: a mesh axis does not divide the axis it would split.
    """

    def sharding(spec):
        mesh_axes = logical_to_mesh_axes(spec.axes, rules) or PartitionSpec()
        named = NamedSharding(mesh, mesh_axes)
        try:
            named.shard_shape(spec.shape)
        except ValueError as error:
            if spec.or_whole:
                return replicated(mesh)
            axes = ", ".join(f"{name} {size}" for name, size in zip(spec.axes, spec.shape, strict=True))
            raise InputError(f"a mesh of {dict(mesh.shape)} does not divide a parameter with axes {axes}") from error
        return named

    return jax.tree.map(sharding, param_specs(config, quantization), is_leaf=is_spec)


def batch_sharding(mesh: Mesh, rules: Rules = RULES) -> NamedSharding:
    """Of arrays whose first axis is the batch."""
    return NamedSharding(mesh, logical_to_mesh_axes(("batch",), rules) or PartitionSpec())


def replicated(mesh: Mesh) -> NamedSharding:
    """Of arrays that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())

"""Device mesh (data, fsdp, tensor), and the rules that map the model's logical axes to its axes."""

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from flax.linen import get_logical_axis_rules, logical_axis_rules
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
"""Mesh axes by logical axis. Axes without a rule are not split: adapters and their optimizer state are replicated.

"embed" is split for storage; a layer's weights are gathered along it where they are used.
"""


def make_mesh(
    *, data: int = 1, fsdp: int = -1, tensor: int = 1, slices: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """Returns a mesh of (data, fsdp, tensor). Network neighbours are adjacent along tensor, then along fsdp.

    Args:
      data: replicas of the parameters.
      fsdp: devices that the parameters of one replica are split over for storage.
      tensor: devices that heads, MLP and vocabulary are split over. One of `data`, `fsdp` and `tensor` may be -1, to
        use all remaining devices.
      slices: TPU slices, with a fast network within a slice and the data centre's network between them. Slices hold
        replicas, so they must divide `data`.
      devices: `jax.Device`s; None takes all.

    Raises:
      InputError: two of `data`, `fsdp` and `tensor` are -1, they do not multiply to the number of devices, `slices`
        does not divide `data` or does not match the devices, or the devices do not form a box in the TPU's network.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = np.array([data, fsdp, tensor])
    if (sizes == -1).sum() == 1:
        sizes[sizes == -1] = len(devices) // max(1, -int(sizes.prod()))
    wanted = f"a mesh of data={data}, fsdp={fsdp} and tensor={tensor}"
    if free := [axis for axis, size in zip(AXES, sizes, strict=True) if size == -1]:
        # The default of fsdp is -1, so that another axis is the one that was meant.
        kept = next(axis for axis in free if axis != "fsdp")
        fixed = [f"{axis}=1" for axis in free if axis != kept]
        raise InputError(
            f"{wanted} leaves all remaining devices (-1) to {' and '.join(free)}, but to one axis only they can be "
            f"left: add {' and '.join(fixed)} (--{fixed[0]} of a server, else --config.mesh.{fixed[0]})"
        )
    if sizes.min() < 1 or sizes.prod() != len(devices):
        raise InputError(f"{wanted} does not fit {len(devices)} devices")
    if slices < 1 or sizes[0] % slices:
        raise InputError(f"{wanted} does not fit {slices} slices, which must divide its {sizes[0]} replicas")
    return Mesh(_arranged(devices, tuple(map(int, sizes)), slices), AXES)


def _arranged(devices: list[Any], sizes: tuple[int, ...], slices: int) -> np.ndarray:
    if slices > 1:
        within = (sizes[0] // slices, *sizes[1:])
        has_slices = all(getattr(device, "slice_index", None) is not None for device in devices)
        # Devices without a slice index (CPUs) are grouped by process.
        of_each = Counter(device.slice_index if has_slices else device.process_index for device in devices)
        if len(of_each) != slices or len(set(of_each.values())) > 1:
            counts = ", ".join(str(count) for _, count in sorted(of_each.items()))
            raise InputError(f"config.mesh.slices is {slices}, but the devices come in groups of {counts}")
        return mesh_utils.create_hybrid_device_mesh(within, (slices, 1, 1), devices, process_is_granule=not has_slices)
    if len(devices) > 1 and devices[0].platform == "tpu":
        try:
            return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
        except AssertionError as error:
            # JAX asserts that the devices fill the box of their coordinates.
            raise InputError(
                f"these {len(devices)} devices are no box of the TPU's network: take so many that are (--devices)"
            ) from error
    return np.array(devices).reshape(sizes)


def describe(mesh: Mesh) -> str:
    """Returns the mesh in words: number and kind of devices, and the sizes of its axes."""
    axes = " × ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1) or "one device"
    return f"{mesh.size} of {mesh.devices.flat[0].device_kind}, {axes}"


def mesh_of(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Returns the mesh of a config, over the given devices or all.

    Raises:
      InputError: the mesh does not fit the devices.
    """
    return make_mesh(data=config.data, fsdp=config.fsdp, tensor=config.tensor, slices=config.slices, devices=devices)


def rules_of(config: MeshConfig) -> Rules:
    """Returns the default rules, with those of a config in place of the defaults.

    Raises:
      InputError: a logical axis or a mesh axis is unknown, or two rules conflict.
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
    # A device attends with its own heads, and sums its own rows over the vocabulary's axes. Rules that conflict would
    # pair wrong heads, or add sums of different rows, without an error.
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
    """Sets mesh and rules for functions that are traced inside the context."""
    with jax.set_mesh(mesh), logical_axis_rules(rules):
        yield


def for_other_threads() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """Returns a function whose contexts set the present mesh and rules in any thread; each thread has its own."""
    mesh, rules = jax.sharding.get_mesh(), tuple(get_logical_axis_rules())
    return contextlib.nullcontext if mesh.empty else functools.partial(use, mesh, rules)


def param_shardings(
    config: LlamaConfig, mesh: Mesh, rules: Rules = RULES, quantization: Quantization | None = None
) -> Params:
    """Returns a `Params` with a NamedSharding in place of every array.

    Scales of quantized weights are split like their values, or replicated if the mesh does not divide them.

    Raises:
      InputError: a mesh axis does not divide the axis that it splits.
    """

    def sharding(spec):
        mesh_axes = logical_to_mesh_axes(spec.axes, rules) or PartitionSpec()
        named = NamedSharding(mesh, mesh_axes)
        try:
            named.shard_shape(spec.shape)
        except ValueError as error:
            if spec.or_replicated:
                return replicated(mesh)
            axes = ", ".join(f"{name} {size}" for name, size in zip(spec.axes, spec.shape, strict=True))
            raise InputError(f"a mesh of {dict(mesh.shape)} does not divide a parameter with axes {axes}") from error
        return named

    return jax.tree.map(sharding, param_specs(config, quantization), is_leaf=is_spec)


def batch_sharding(mesh: Mesh, rules: Rules = RULES) -> NamedSharding:
    """Returns the sharding of arrays whose first axis is the batch."""
    return NamedSharding(mesh, logical_to_mesh_axes(("batch",), rules) or PartitionSpec())


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of arrays that every device holds in full."""
    return NamedSharding(mesh, PartitionSpec())

"""Loads the base of a config, sharded over a mesh."""

import functools

import jax
from jax.sharding import Mesh

from aligner_jax.runtime import platform, sharding
from aligner_jax.runtime.config import BaseConfig
from aligner_jax.weights.base import Base, load_base


def load_base_over(mesh: Mesh, rules: sharding.Rules, config: BaseConfig) -> Base:
    """Loads the base of a config, sharded over the mesh; whole on its device if there is one alone.

    Args:
      mesh: devices.
      rules: logical axis rules of the sharding.
      config: config of the base.

    Raises:
      InputError: the base cannot be read, or the mesh does not divide the model.
    """
    split = functools.partial(sharding.param_shardings, mesh=mesh, rules=rules) if mesh.size > 1 else None
    return load_base(
        config.path, platform.compute_dtype(config.dtype), quantization=config.quantization,
        group_size=config.group_size, shardings=split,
    )  # fmt: skip


def spread(base: Base, mesh: Mesh, rules: sharding.Rules) -> Base:
    """Returns a loaded base with its parameters sharded over the mesh; the base itself on a single device.

    Raises:
      InputError: the mesh does not divide the model.
    """
    if mesh.size == 1:
        return base
    shardings = sharding.param_shardings(base.config, mesh, rules, base.quantization)
    return base.replace(params=jax.device_put(base.params, shardings))

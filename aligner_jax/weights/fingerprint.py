"""Fingerprint of a base model: a digest of its weights and configuration, which adapter files record."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from aligner_jax.files.identity import identity
from aligner_jax.model.config import LlamaConfig
from aligner_jax.model.params import Layers, Params
from aligner_jax.weights.assemble import Parts
from aligner_jax.weights.leaves import leaf_specs


class LeafSums(NamedTuple):
    """Shape and sums of one parameter, from which `digest` computes the fingerprint."""

    shape: tuple[int, ...]
    sums: tuple[Array | np.uint32, Array | np.uint32]


def fingerprint(config: LlamaConfig, params: Params) -> str:
    """Returns 64 hexadecimal digits that differ between base models.

    Weights are rounded to bfloat16 first, so a bfloat16 checkpoint has one fingerprint in every dtype. The sums are of
    integers that wrap around, so they do not depend on order, sharding or platform. A change of a single weight by one
    step of bfloat16 always changes the digest: its multiplier is odd, hence invertible modulo 2³². This guards against
    mistakes, not against deliberate collisions.
    """
    leaves = {path[-1].name: leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    return digest(config, {name: leaf_sums(leaf) for name, leaf in leaves.items()})


def fingerprint_of_parts(config: LlamaConfig, parts: Parts) -> str:
    """Returns the fingerprint of a model that is read layer by layer. The host holds one layer of a leaf at a time.

    Args:
      parts: reads the model's leaves, in any dtype that holds the weights rounded to bfloat16.
    """
    leaves = {}
    for leaf, spec in leaf_specs(config).items():
        totals = np.zeros(2, np.uint32)
        step = 1 if spec.axes[0] == "layers" else spec.shape[0]
        row_size = math.prod(spec.shape[1:])
        for row in range(0, spec.shape[0], step):
            part = parts(leaf, [[slice(row, row + step), *[slice(None)] * (len(spec.shape) - 1)]])[0]
            # Positions are counted modulo 2³², as the sums are.
            totals += np.array(_part_sums(part, np.uint32(row * row_size % 2**32)), np.uint32)
        leaves[leaf] = LeafSums(spec.shape, (totals[0], totals[1]))
    return digest(config, leaves)


def leaf_sums(leaf: Array) -> LeafSums:
    """Returns the sums of one parameter for `digest`. The parameter itself need not be kept."""
    return LeafSums(leaf.shape, _sums(leaf))


def digest(config: LlamaConfig, leaves: Mapping[str, LeafSums]) -> str:
    """Returns the fingerprint from the sums of all parameters.

    Args:
      leaves: sums by field name of `Params` or `Layers`.
    """
    of_layers = {field.name for field in dataclasses.fields(Layers)}
    sums = jax.device_get({name: leaf.sums for name, leaf in leaves.items()})
    content = {
        "config": identity(config),
        "leaves": {
            f".layers.{name}" if name in of_layers else f".{name}": [
                list(leaf.shape),
                [int(total) for total in sums[name]],
            ]
            for name, leaf in leaves.items()
        },
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@jax.jit
def _sums(leaf: Array) -> tuple[Array, Array]:
    """Returns two sums of the leaf's bfloat16 bits, with odd multipliers that are hashes of the positions."""
    return _sums_from(leaf, jnp.uint32(0))


@jax.jit
def _part_sums(part: np.ndarray, start: np.uint32) -> tuple[Array, Array]:
    """Returns the two sums of a part of a leaf, whose first number is at position `start`."""
    return _sums_from(jnp.asarray(part), jnp.asarray(start))


def _sums_from(leaf: Array, start: Array) -> tuple[Array, Array]:
    bits = _bfloat16_bits(leaf)
    position = jnp.zeros(leaf.shape, jnp.uint32)
    for axis, size in enumerate(leaf.shape):
        position = position * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
    first = _scatter(position + start)
    second = _scatter(first ^ jnp.uint32(0x9E3779B9))
    products = bits * (first | 1), bits * (second | 1)
    zeros = jnp.uint32(0), jnp.uint32(0)
    # One reduction of pairs reads the model once. Two reductions take several times longer to compile and run.
    return jax.lax.reduce(products, zeros, lambda a, b: (a[0] + b[0], a[1] + b[1]), tuple(range(leaf.ndim)))


def _bfloat16_bits(leaf: Array) -> Array:
    """Rounds to nearest even in integers, because conversion instructions of some processors flush denormals."""
    if leaf.dtype == jnp.bfloat16:
        return jax.lax.bitcast_convert_type(leaf, jnp.uint16).astype(jnp.uint32)
    bits = jax.lax.bitcast_convert_type(leaf.astype(jnp.float32), jnp.uint32)
    return (bits + jnp.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16


def _scatter(x: Array) -> Array:
    """Applies MurmurHash3's finalizer without its last shift: a bijection of the 32-bit integers."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    return (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)

"""What a base model is called in an adapter's file: a digest of its weights and configuration."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from aligner_jax.files.identity import identity
from aligner_jax.model.config import LlamaConfig
from aligner_jax.model.params import Layers, Params


class LeafSums(NamedTuple):
    """What the fingerprint needs of one parameter."""

    shape: tuple[int, ...]
    sums: tuple[Array, Array]


def fingerprint(config: LlamaConfig, params: Params) -> str:
    """64 hexadecimal digits that differ between base models.

    They are of the weights rounded to bfloat16, so a bfloat16 checkpoint has one fingerprint in whatever dtype it is
    loaded. Sums of integers that wrap come out the same in any order, so sharding and platform do not matter. A
    change of a single weight by one step of bfloat16 always changes the digest: its multiplier is odd, hence
    invertible modulo 2³². This guards against mistakes, not against somebody who wants two models to collide.
    """
    leaves = {path[-1].name: leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    return digest(config, {name: leaf_sums(leaf) for name, leaf in leaves.items()})


def leaf_sums(leaf: Array) -> LeafSums:
    """What the fingerprint needs of one parameter, which need not be kept for it."""
    return LeafSums(leaf.shape, _sums(leaf))


def digest(config: LlamaConfig, leaves: Mapping[str, LeafSums]) -> str:
    """The fingerprint, from the sums of all parameters by field of `Params` or `Layers`."""
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
    """Two sums of the leaf's bfloat16 bits, each times an odd number scattered by the element's position."""
    bits = _bfloat16_bits(leaf)
    position = jnp.zeros(leaf.shape, jnp.uint32)
    for axis, size in enumerate(leaf.shape):
        position = position * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
    first = _scatter(position)
    second = _scatter(first ^ jnp.uint32(0x9E3779B9))
    products = bits * (first | 1), bits * (second | 1)
    zeros = jnp.uint32(0), jnp.uint32(0)
    # One reduction of pairs reads the model once; two reductions compile and run several times longer.
    return jax.lax.reduce(products, zeros, lambda a, b: (a[0] + b[0], a[1] + b[1]), tuple(range(leaf.ndim)))


def _bfloat16_bits(leaf: Array) -> Array:
    """Round to nearest even in integers: conversion instructions of some processors flush denormal numbers."""
    if leaf.dtype == jnp.bfloat16:
        return jax.lax.bitcast_convert_type(leaf, jnp.uint16).astype(jnp.uint32)
    bits = jax.lax.bitcast_convert_type(leaf.astype(jnp.float32), jnp.uint32)
    return (bits + jnp.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16


def _scatter(x: Array) -> Array:
    """The finalizer of MurmurHash3 without its last shift: a bijection of the 32-bit integers."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    return (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)

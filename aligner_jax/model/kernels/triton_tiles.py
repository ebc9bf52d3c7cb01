"""Operands of the GPU programs, and the loads, stores, products and masks of their tiles (shape legend: llama.py).

Arrays keep the model's layout, positions before heads: one position of a head is contiguous and fills whole
transactions of the memory, so nothing is transposed. A program gets references to all positions of its heads and loads
tiles from them. The sizes of tiles are powers of two; what lies outside the array is masked.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Int

from aligner_jax.model.kernels.triton_blocks import Blocks, default_blocks, padded

Ref = Any
"""A reference to the GPU's memory; JAX's own class is not typed for indexing."""
Index = Any
"""An index of a block or a head: an int, or a scalar of the program."""
LOG2_E = 1.4426950408889634
MASKED = -1e30
"""Score of a masked pair. Finite, so that the difference of two masked scores is defined."""
_MULTIPLE = 128
"""References have a multiple of this many positions, so that blocks of every size divide them."""


class Operands[T](NamedTuple):
    """Inputs of a program: arrays, their block specs, or references.

    Attributes:
      q: queries [b, t, n, h].
      k, v: keys and values of the text [b, t, k, h].
      before_k, before_v: keys and values [b, p, k, h] in the same softmax that every query attends to; None if p is 0.
      segments: segment ids [b, t]; None if rows are not packed.
    """

    q: T
    k: T
    v: T
    before_k: T | None
    before_v: T | None
    segments: T | None


def operands_of(
    q_btnh: Float[Array, "b t n h"],
    k_bskh: Float[Array, "b s k h"],
    v_bskh: Float[Array, "b s k h"],
    segment_ids_bt: Int[Array, "b t"] | None,
) -> Operands[Array]:
    """Returns the operands; the first s - t keys and values are separated from the text's."""
    p = k_bskh.shape[1] - q_btnh.shape[1]
    before = (k_bskh[:, :p], v_bskh[:, :p]) if p else (None, None)
    segments_bt = None if segment_ids_bt is None else segment_ids_bt.astype(jnp.int32)
    return Operands(q_btnh, k_bskh[:, p:], v_bskh[:, p:], *before, segments_bt)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Static sizes of a program, whose references are padded.

    Attributes:
      length: positions of the text.
      before: keys before the text's.
      head_dim: size of a head.
      blocks: block sizes.
    """

    length: int
    before: int
    head_dim: int
    blocks: Blocks


def sizes_of(operands: Operands[Array], *, tiles: int) -> Sizes:
    """Returns the sizes of a program that holds `tiles` tiles of its own rows."""
    _, t, _, h = operands.q.shape
    p = 0 if operands.before_k is None else operands.before_k.shape[1]
    return Sizes(t, p, h, default_blocks(t, h, operands.q.dtype, tiles=tiles))


def query_head_specs(operands: Operands[Array]) -> Operands[pl.BlockSpec]:
    """Returns the block specs of a program per query head, whose indices are (block, query head, row of the batch)."""
    group = operands.q.shape[2] // operands.k.shape[2]
    kv, before = head_spec(operands.k, of=lambda n: lax.div(n, group)), None
    if operands.before_k is not None:
        before = head_spec(operands.before_k, of=lambda n: lax.div(n, group))
    return Operands(head_spec(operands.q), kv, kv, before, before, row_spec(operands.segments))


def head_spec(x_btnh: Array, heads: int | None = None, *, of: Callable[[Index], Index] = lambda n: n) -> pl.BlockSpec:
    """Returns the block spec of all positions of some heads.

    Args:
      x_btnh: the array.
      heads: heads per block; by default one, and references have no axis of heads.
      of: maps the program's second index to the index of the block of heads.
    """
    _, t, _, h = x_btnh.shape
    return pl.BlockSpec((None, _round_up(t), heads, padded(h)), lambda i, n, b: (b, 0, of(n), 0))


def statistic_spec(length: int, heads: int | None = None) -> pl.BlockSpec:
    """Returns the block spec of a statistic [b, n, t] of some heads."""
    return pl.BlockSpec((None, heads, _round_up(length)), lambda i, n, b: (b, n, 0))


def row_spec(x_bt: Array | None) -> pl.BlockSpec | None:
    """Returns the block spec of an array with one value per position or per block; None for None."""
    return None if x_bt is None else pl.BlockSpec((None, _round_up(x_bt.shape[1])), lambda i, n, b: (b, 0))


def load_tile(ref: Ref, block: Index, shape: tuple[int, int], length: int, head: Index | None = None) -> Array:
    """Returns a block of positions of a head.

    Args:
      ref: reference [positions, padded head size] of a head, or [positions, heads, padded head size] of several.
      block: index of the block.
      shape: positions per block, and the head size.
      length: number of positions of the array; positions and columns outside the array are 0.
      head: index of the head if `ref` has several.
    """
    size, head_dim = shape
    masks = [positions(block, size)[:, None] < length] if length % size else []
    masks += [jnp.arange(padded(head_dim))[None, :] < head_dim] if padded(head_dim) > head_dim else []
    mask = masks[0] & masks[-1] if masks else None
    where = pl.ds(block * size, size)
    tile = ref.at[where, :] if head is None else ref.at[where, head, :]
    return plgpu.load(tile, mask=mask, other=0 if masks else None)


def store_tile(ref: Ref, block: Index, x: Array, length: int, head_dim: int) -> None:
    """Writes a block of positions of a head, except what lies outside the array."""
    mask = (positions(block, len(x))[:, None] < length) & (jnp.arange(x.shape[1])[None, :] < head_dim)
    plgpu.store(ref.at[pl.ds(block * len(x), len(x)), :], x.astype(ref.dtype), mask=mask)


def load_values(ref: Ref, block: Index, size: int, length: int, head: Index | None = None) -> Array:
    """Returns a block of segment ids, or of a statistic of a head; values outside the array are 0."""
    where = pl.ds(block * size, size)
    mask = positions(block, size) < length if length % size else None
    ref = ref.at[where] if head is None else ref.at[head, where]
    return plgpu.load(ref, mask=mask, other=None if mask is None else 0)


def store_values(ref: Ref, block: Index, x: Array, length: int) -> None:
    """Writes a block of a statistic of a head, except what lies outside the array."""
    plgpu.store(ref.at[pl.ds(block * len(x), len(x))], x, mask=positions(block, len(x)) < length)


def positions(block: Index, size: int) -> Array:
    """Returns the positions [size] of a block."""
    return block * size + jnp.arange(size)


def both(mask: Array | None, other: Array) -> Array:
    """Returns the pairs that two masks leave; None masks nothing."""
    return other if mask is None else mask & other


def _round_up(length: int) -> int:
    return pl.cdiv(length, _MULTIPLE) * _MULTIPLE

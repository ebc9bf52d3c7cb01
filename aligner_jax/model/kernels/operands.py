"""Operands of the programs, their block specs, and the first keys that each block of queries visits."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int

Ref = Any
"""A reference to a block in the TPU's memory, read and written by indexing; JAX's own class is not typed for that."""


class PrefixPair[T](NamedTuple):
    """Keys and values of a prefix padded to a multiple of 16 tokens, or their gradients.

    Attributes:
      k: keys [b, k, p, h], where b is 1 (shared by all rows) or the batch; their gradients are [b, n, p, h].
      v: values for each query head, multiplied by the head's gate, [b, n, p, h].
    """

    k: T
    v: T


class Operands(NamedTuple):
    """Inputs of attention with heads before positions; queries and keys are already rotated."""

    q_bnth: Float[Array, "b n t h"]
    k_bksh: Float[Array, "b k s h"]
    v_bksh: Float[Array, "b k s h"]
    prefix: PrefixPair[Array] | None = None
    segments_b1t: Int[Array, "b 1 t"] | None = None

    @property
    def group(self) -> int:
        """Query heads per kv head."""
        return self.q_bnth.shape[1] // self.k_bksh.shape[1]


class Refs[T](NamedTuple):
    """The operands with separate segment ids of queries and of keys, which have different block specs."""

    q: T
    k: T
    v: T
    prefix: PrefixPair[T] | None
    q_segments: T | None
    k_segments: T | None

    def segments(self: "Refs[Ref]", keys: pl.Slice, queries: slice) -> tuple[Array, Array] | None:
        """Returns the segment ids of keys [1, s] and of queries [1, t]; None if rows are not packed."""
        if self.k_segments is None or self.q_segments is None:
            return None
        return self.k_segments[:, keys], self.q_segments[:, queries]


def in_specs(operands: Operands, query: int, span: int, where) -> Refs[pl.BlockSpec]:
    """Returns the block specs of the operands.

    Args:
      operands: inputs of the program.
      query: queries per block.
      span: keys per block.
      where: maps the program's indices and prefetched scalars to (row, query head, query block, span).
    """
    group, h = operands.group, operands.q_bnth.shape[3]

    def spec(shape, index):
        return block_spec((None, *shape), where, index)

    def prefix_spec(x, head):
        shared = x.shape[0] == 1
        return spec((None, *x.shape[2:]), lambda b, n, i, j: (0 if shared else b, head(n), 0, 0))

    def kv_head(n):
        return lax.div(n, group)

    prefix, packed = operands.prefix, operands.segments_b1t is not None
    return Refs(
        q=spec((None, query, h), lambda b, n, i, j: (b, n, i, 0)),
        k=spec((None, span, h), lambda b, n, i, j: (b, kv_head(n), j, 0)),
        v=spec((None, span, h), lambda b, n, i, j: (b, kv_head(n), j, 0)),
        prefix=prefix and PrefixPair(prefix_spec(prefix.k, kv_head), prefix_spec(prefix.v, lambda n: n)),
        q_segments=spec((1, query), lambda b, n, i, j: (b, 0, i)) if packed else None,
        k_segments=spec((1, span), lambda b, n, i, j: (b, 0, j)) if packed else None,
    )


def block_spec(shape: tuple[int | None, ...], where, index) -> pl.BlockSpec:
    """Returns the spec of a block of this shape; its index map is `index` after `where`."""
    return pl.BlockSpec(shape, lambda *ids: index(*where(*ids)))


def arrays(operands: Operands) -> Refs[Array]:
    """Returns the operands in the order of `in_specs`."""
    return Refs(*operands, operands.segments_b1t)


def first_keys(segments_b1t: Int[Array, "b 1 t"] | None, batch: int, length: int, block: int) -> Int[Array, "b i"]:
    """Returns the first key position that each block of queries may see, rounded down to a block.

    Blocks of keys before that position share no segment with the queries. Segment ids need not be sorted: leading
    blocks of keys are skipped as long as their range of ids does not overlap that of the queries.

    Args:
      segments_b1t: segment ids; None if rows are not packed.
      batch: number of rows.
      length: length of the rows.
      block: positions per block.
    """
    num_blocks = length // block
    if segments_b1t is None:
        return jnp.zeros((batch, num_blocks), jnp.int32)
    segments_bit = segments_b1t.reshape(batch, num_blocks, block)
    least_bi, most_bi = jnp.min(segments_bit, axis=2), jnp.max(segments_bit, axis=2)
    meet_bij = (least_bi[:, :, None] <= most_bi[:, None, :]) & (least_bi[:, None, :] <= most_bi[:, :, None])
    return jnp.argmax(meet_bij, axis=2).astype(jnp.int32) * block


def cost(operands: Operands, *, products: int, passes: int) -> pl.CostEstimate:
    """Returns the cost estimate of a call for XLA's scheduler.

    Args:
      operands: inputs of the call.
      products: number of matrix products over the causal pairs.
      passes: arrays that the call reads and writes, as a multiple of the operands and outputs of the forward pass.
    """
    b, n, t, h = operands.q_bnth.shape
    p = 0 if operands.prefix is None else operands.prefix.k.shape[2]
    pairs = b * n * t * (t // 2 + p)
    return pl.CostEstimate(
        flops=2 * products * pairs * h,
        transcendentals=pairs,
        bytes_accessed=operands.q_bnth.dtype.itemsize * 2 * passes * (operands.q_bnth.size + operands.k_bksh.size),
    )


def chunk_of(start, size: int) -> pl.Slice:
    """Returns the slice of `size` positions from `start`, a multiple of `size`."""
    return pl.ds(pl.multiple_of(start, size), size)


def when(condition, *, always: bool):
    """Returns `pl.when`, without a branch if the condition is `always` true."""
    return (lambda do: do()) if always else pl.when(condition)

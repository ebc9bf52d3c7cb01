"""What the programs work on, how it is cut, and which spans of keys a block of queries visits."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int

Ref = Any
"""A part of an array in the TPU's memory, read and written by indexing; JAX's own class is not typed as such."""


class PrefixPair[T](NamedTuple):
    """Of a prefix padded to 16 tokens, or of its gradient.

    Attributes:
      k: keys [b, k, p, h], b being 1 (shared by all rows) or the batch; their gradients are [b, n, p, h].
      v: values for each query head, multiplied by the head's gate, [b, n, p, h].
    """

    k: T
    v: T


class Operands(NamedTuple):
    """The inputs of one attention, heads first; queries and keys are rotated. segments: document numbers."""

    q_bnth: Float[Array, "b n t h"]
    k_bksh: Float[Array, "b k s h"]
    v_bksh: Float[Array, "b k s h"]
    prefix: PrefixPair[Array] | None = None
    segments_b1t: Int[Array, "b 1 t"] | None = None

    @property
    def group(self) -> int:
        """Query heads a kv head."""
        return self.q_bnth.shape[1] // self.k_bksh.shape[1]


class Refs[T](NamedTuple):
    """The operands once more, but with the segments of queries and of keys apart, since they are cut differently."""

    q: T
    k: T
    v: T
    prefix: PrefixPair[T] | None
    q_segments: T | None
    k_segments: T | None

    def segments(self: "Refs[Ref]", keys: pl.Slice, queries: slice) -> tuple[Array, Array] | None:
        """Of these keys [1, s] and queries [1, t]; None where rows are not packed."""
        if self.k_segments is None or self.q_segments is None:
            return None
        return self.k_segments[:, keys], self.q_segments[:, queries]


def in_specs(operands: Operands, query: int, span: int, where) -> Refs[pl.BlockSpec]:
    """The blocks of the operands for a program.

    Args:
      where: from the program's indices (and the prefetched scalars) to (row, query head, query block, span).
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
    """The block of this shape at `index` of what `where` makes of a program's indices."""
    return pl.BlockSpec(shape, lambda *ids: index(*where(*ids)))


def arrays(operands: Operands) -> Refs[Array]:
    """The operands in the order of `in_specs`."""
    return Refs(*operands, operands.segments_b1t)


def first_keys(segments_b1t: Int[Array, "b 1 t"] | None, batch: int, length: int, block: int) -> Int[Array, "b i"]:
    """For each block of queries, the first position that one of them may see, rounded down to a block.

    Blocks of keys before it share no segment with the queries. Segments need not be in order: a block of keys is
    passed over only where the ranges of numbers are apart, for it and for all blocks before it.
    """
    num_blocks = length // block
    if segments_b1t is None:
        return jnp.zeros((batch, num_blocks), jnp.int32)
    segments_bit = segments_b1t.reshape(batch, num_blocks, block)
    least_bi, most_bi = jnp.min(segments_bit, axis=2), jnp.max(segments_bit, axis=2)
    meet_bij = (least_bi[:, :, None] <= most_bi[:, None, :]) & (least_bi[:, None, :] <= most_bi[:, :, None])
    return jnp.argmax(meet_bij, axis=2).astype(jnp.int32) * block


def cost(operands: Operands, *, products: int, passes: int) -> pl.CostEstimate:
    """What XLA's scheduler is told of a call: causal pairs in so many products of matrices, and each operand once.

    Args:
      passes: tensors of the queries' shape that are read and written for each such tensor among the operands.
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
    """`size` positions from `start` on, a multiple of `size`."""
    return pl.ds(pl.multiple_of(start, size), size)


def when(condition, *, always: bool):
    """`pl.when`, without a branch where the condition is known to hold."""
    return (lambda do: do()) if always else pl.when(condition)

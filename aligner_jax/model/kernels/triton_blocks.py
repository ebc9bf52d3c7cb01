"""Block sizes of the GPU programs, and the blocks that packed rows visit (shape legend: llama.py)."""

import dataclasses

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Int

SMALLEST = 16
"""Least size of each axis of a product on tensor cores."""


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Block sizes of a program, powers of two.

    Attributes:
      own: positions whose outputs a program computes.
      streamed: positions per step of its loop.
      stages: steps whose loads are in flight at once.
    """

    own: int
    streamed: int
    stages: int

    def shared_bytes(self, width: int, itemsize: int, tiles: int) -> int:
        """Returns the bytes of the tiles in the shared memory of a program that holds `tiles` tiles of its own rows.

        A compiled program also has a little memory for reductions and values per position (128 bytes measured), or
        less in all, because it keeps tiles in registers.
        """
        return (tiles * self.own + 2 * self.stages * self.streamed) * width * itemsize

    def compiler_params(self, width: int, tiles: int) -> plgpu.CompilerParams:
        """Returns parameters that leave a thread up to 64 registers for each tile of float32 sums."""
        num_warps = 8 if tiles * self.own * width > 4 * 32 * 64 else 4
        return plgpu.CompilerParams(num_warps=num_warps, num_stages=self.stages)


# These follow from the size of shared memory and are not tuned on a card. The first that fits is used.
_SIZES = (Blocks(128, 64, 3), Blocks(128, 64, 2), Blocks(64, 64, 2), Blocks(64, 32, 2), Blocks(32, 32, 2),
          Blocks(32, 16, 2), Blocks(16, 16, 1))  # fmt: skip
SHARED_BYTES = 96 * 2**10
"""Shared memory for tiles. A program has 99 KiB on sm_86, sm_89 and sm_120, 163 KiB on sm_80 and 227 KiB on sm_90, so
that at least 3 KiB are left for what `Blocks.shared_bytes` does not count."""


def default_blocks(length: int, head_dim: int, dtype: jnp.dtype, *, tiles: int) -> Blocks:
    """Returns block sizes that fit every GPU.

    Args:
      length: length of the rows.
      head_dim: size of a head.
      dtype: dtype of queries, keys and values.
      tiles: number of tiles of its own rows that a program holds during its loop.
    """
    width, longest = padded(head_dim), padded(length)
    blocks = next(x for x in _SIZES if x.shared_bytes(width, dtype.itemsize, tiles) <= SHARED_BYTES)
    return dataclasses.replace(blocks, own=min(blocks.own, longest), streamed=min(blocks.streamed, longest))


def padded(size: int) -> int:
    """Returns the least size of a tile's axis that holds `size`: tiles have powers of two."""
    return max(SMALLEST, pl.next_power_of_2(size))


def first_key_blocks(segments_bt: Int[Array, "b t"], query: int, key: int) -> Int[Array, "b i"]:
    """Returns the first block of keys that each block of queries may attend to.

    Segment ids need not be sorted: blocks are left out at the ends of the row, as long as the ranges of the ids do not
    overlap. Blocks between two of the same segment are visited and masked.

    Args:
      segments_bt: segment ids.
      query: queries per block.
      key: keys per block.
    """
    return jnp.argmax(_overlap(segments_bt, query, key), axis=2).astype(jnp.int32)


def end_query_blocks(segments_bt: Int[Array, "b t"], query: int, key: int) -> Int[Array, "b j"]:
    """Returns the block after the last block of queries that may attend to each block of keys.

    The arguments are those of `first_key_blocks`.
    """
    overlap_bij = _overlap(segments_bt, query, key)
    return (overlap_bij.shape[1] - jnp.argmax(overlap_bij[:, ::-1], axis=1)).astype(jnp.int32)


def _overlap(segments_bt, query: int, key: int):
    (q_least_bi, q_most_bi), (k_least_bj, k_most_bj) = (_range_of_ids(segments_bt, size) for size in (query, key))
    below_bij = k_least_bj[:, None, :] <= q_most_bi[:, :, None]
    return below_bij & (q_least_bi[:, :, None] <= k_most_bj[:, None, :])


def _range_of_ids(segments_bt, size: int):
    padding = -segments_bt.shape[1] % size
    blocks_bis = jnp.pad(segments_bt, ((0, 0), (0, padding)), mode="edge").reshape(len(segments_bt), -1, size)
    return jnp.min(blocks_bis, axis=2), jnp.max(blocks_bis, axis=2)

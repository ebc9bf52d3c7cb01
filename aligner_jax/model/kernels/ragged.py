"""Attention of one query per row to the filled slots of a cache, for TPUs (Pallas; shape legend: llama.py).

A step of decoding is bound by the bytes that it moves. This kernel fetches a row's slots in blocks, and no block behind
the row's last filled slot. The size of the grid is dynamic, the number of these blocks over all rows, so that there are
no empty iterations either. The kernel takes the cache of all layers and a layer's index, and reads in place.

The kernels in JAX (`paged_attention`, `ragged_paged_attention`) take pages of one layer in other orders of axes, and
return no denominators, with which keys that are not in the cache could be joined.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from aligner_jax.model.kernels.arithmetic import LOG2_E, MASKED
from aligner_jax.model.kernels.blocks import LANES
from aligner_jax.model.kernels.kernel import Unsupported
from aligner_jax.model.kernels.operands import Ref

_BLOCK_BYTES = 2**19
"""Bytes of a block of keys at most."""
_LONG_BLOCK_BYTES = 2**18
"""The same for blocks of more than 128 slots. A row reads half a block more than it has, on average, so blocks are only
long enough for a fetch to take longer than an iteration's instructions (v5e: 960 cycles, 340 static bundles)."""
_MAX_BLOCK = 512
_MAX_BESIDE = 256
_MAX_BLOCKS = 2**15
"""Blocks of all rows at most; their list of rows lies in scalar memory."""


def check_supported(dtype: jnp.dtype, k_lbksh: jax.ShapeDtypeStruct | Array, num_beside: int) -> None:
    """Raises Unsupported, with the reason, if the kernel does not support these shapes and dtypes.

    Args:
      dtype: dtype of the queries.
      k_lbksh: keys, or their shape and dtype.
      num_beside: number of keys per row that are not in the cache.
    """
    _, b, _, slots, h = k_lbksh.shape
    if dtype not in (jnp.float32, jnp.bfloat16) or dtype != k_lbksh.dtype:
        raise Unsupported(
            "the decoding kernel takes queries and a cache that are both float32 or both bfloat16, not "
            f"{dtype} and {k_lbksh.dtype}"
        )
    if h not in (64, 128, 256):
        raise Unsupported(f"the decoding kernel takes head dims 64, 128 and 256, not {h}")
    if h % LANES and slots % LANES:
        raise Unsupported(f"the decoding kernel takes a multiple of {LANES} slots for head dim {h}, not {slots}")
    if num_beside > _MAX_BESIDE:
        raise Unsupported(f"the decoding kernel takes up to {_MAX_BESIDE} keys beside the cache, not {num_beside}")
    _, block = block_sizes(k_lbksh.shape, k_lbksh.dtype)
    if (blocks := b * pl.cdiv(slots, block)) > _MAX_BLOCKS:
        raise Unsupported(f"the decoding kernel takes up to {_MAX_BLOCKS} blocks of {block} slots, not {blocks}")


def supports(dtype: jnp.dtype, k_lbksh: jax.ShapeDtypeStruct | Array, num_beside: int) -> bool:
    """Returns True if `check_supported` raises nothing."""
    try:
        check_supported(dtype, k_lbksh, num_beside)
    except Unsupported:
        return False
    return True


def block_sizes(shape: tuple[int, ...], dtype: jnp.dtype) -> tuple[int, int]:
    """Returns the kv heads and the slots of the blocks in which a cache [l, b, k, s, h] is read."""
    *_, k, slots, h = shape
    head_bytes = LANES * max(h, LANES) * dtype.itemsize
    heads = next(heads for heads in range(min(k, _BLOCK_BYTES // head_bytes), 0, -1) if k % heads == 0)
    times = max(min(_LONG_BLOCK_BYTES // (heads * head_bytes), _MAX_BLOCK // LANES), 1)
    return heads, min(slots, LANES * times)


def slots_read(filled: int, k_lbksh: jax.ShapeDtypeStruct | Array) -> int:
    """Returns the number of slots that the kernel reads for a row of a cache with `filled` filled slots."""
    slots, (_, block) = k_lbksh.shape[3], block_sizes(k_lbksh.shape, k_lbksh.dtype)
    return min(block * max(pl.cdiv(filled, block), 1), slots)


class Blocks[T](NamedTuple):
    """The blocks that the kernel reads, row by row.

    Attributes:
      rows_i: row of each block; entries past the last block are not used.
      starts_b: index of each row's first block.
      count_1: number of blocks.
    """

    rows_i: T
    starts_b: T
    count_1: T


def filled_blocks(lengths_b: Int[Array, " b"], k_lbksh: jax.ShapeDtypeStruct | Array) -> Blocks[Array]:
    """Returns the blocks that hold the filled slots of each row of a cache; at least one per row.

    Args:
      lengths_b: number of filled slots per row.
      k_lbksh: keys, or their shape and dtype.
    """
    (_, b, _, slots, _), (_, block) = k_lbksh.shape, block_sizes(k_lbksh.shape, k_lbksh.dtype)
    most = pl.cdiv(slots, block)
    ends_b = jnp.cumsum(jnp.clip(pl.cdiv(lengths_b.astype(jnp.int32), block), 1, most))
    is_behind_ib = ends_b[None] <= jnp.arange(b * most, dtype=jnp.int32)[:, None]
    rows_i = jnp.minimum(jnp.sum(is_behind_ib, axis=1, dtype=jnp.int32), b - 1)
    return Blocks(rows_i, jnp.concatenate([jnp.zeros(1, jnp.int32), ends_b[:-1]]), ends_b[-1:])


def attend(
    q_bkgh: Float[Array, "b k g h"],
    k_lbksh: Float[Array, "l b k s h"],
    v_lbksh: Float[Array, "l b k s h"],
    beside_k_bkxh: Float[Array, "b k x h"],
    beside_v_bkxh: Float[Array, "b k x h"],
    lengths_b: Int[Array, " b"],
    blocks: Blocks[Array],
    layer: Int[Array, ""],
    *,
    slots_last: bool = False,
    interpret: bool | pltpu.InterpretParams = False,
) -> Float[Array, "b k g h"]:
    """Computes one softmax over the filled slots of each row and the keys beside the cache.

    Args:
      q_bkgh: a query per head and row, already rotated.
      k_lbksh, v_lbksh: keys and values of all layers. Row b attends to its slots s < lengths_b[b].
      beside_k_bkxh, beside_v_bkxh: keys and values that are not in the cache, at least the new token's own.
      lengths_b: number of filled slots per row.
      blocks: `filled_blocks` of these lengths. They are the same in all layers.
      layer: index of the layer.
      slots_last: True if the cache is stored with slots along the lanes (`layout.swaps_last`), so that it is read in
        place.
      interpret: option of `pl.pallas_call`.
    """
    (b, k, g, h), x, slots = q_bkgh.shape, beside_k_bkxh.shape[2], k_lbksh.shape[3]
    heads, block = block_sizes(k_lbksh.shape, k_lbksh.dtype)
    if slots_last:
        k_lbksh, v_lbksh = k_lbksh.swapaxes(3, 4), v_lbksh.swapaxes(3, 4)
    if not interpret:
        # The compiler would move a whole cache that fits VMEM there and back.
        k_lbksh, v_lbksh = (pltpu.with_memory_space_constraint(x, pltpu.HBM) for x in (k_lbksh, v_lbksh))

    def of_row(*shape):
        return pl.BlockSpec((None, heads, *shape), lambda j, i, rows, *_: (rows[i], j, 0, 0))

    def of_cache(j, i, rows, starts, _, layer):
        row = rows[i]
        place = (i - starts[row], 0)
        return (layer[0], row, j, *(reversed(place) if slots_last else place))

    cache = pl.BlockSpec((None, None, heads, *((h, block) if slots_last else (block, h))), of_cache)
    pairs = b * k * g * (slots + x)
    return pl.pallas_call(
        functools.partial(_program, block=block, slots=slots, slots_last=slots_last),
        out_shape=jax.ShapeDtypeStruct(q_bkgh.shape, q_bkgh.dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=4,
            grid=(k // heads, blocks.count_1[0]),
            in_specs=[of_row(g, h), of_row(x, h), of_row(x, h), cache, cache],
            out_specs=of_row(g, h),
            scratch_shapes=[pltpu.VMEM((heads, g, size), jnp.float32) for size in (1, 1, h)],
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        cost_estimate=pl.CostEstimate(
            flops=4 * pairs * h,
            transcendentals=pairs,
            bytes_accessed=2 * k_lbksh.dtype.itemsize * b * k * (slots + x) * h,
        ),
        name="aligner_attention_decode",
        interpret=interpret,
    )(
        blocks.rows_i, blocks.starts_b, lengths_b, layer.reshape(1), q_bkgh, beside_k_bkxh, beside_v_bkxh, k_lbksh,
        v_lbksh,
    )  # fmt: skip


def _program(
    rows_ref, starts_ref, lengths_ref, _, q_ref: Ref, beside_k_ref: Ref, beside_v_ref: Ref, k_ref: Ref, v_ref: Ref,
    o_ref: Ref, largest_ref: Ref, denominator_ref: Ref, sum_ref: Ref,
    *, block: int, slots: int, slots_last: bool,
):  # fmt: skip
    i = pl.program_id(1)
    row = rows_ref[i]
    first, length = (i - starts_ref[row]) * block, jnp.minimum(lengths_ref[row], slots)

    @pl.when(first == 0)
    def _():
        scores_kgx = _scores(q_ref[...], beside_k_ref[...], slots_last=False)
        largest_kg1 = jnp.max(scores_kgx, axis=2, keepdims=True)
        powers_kgx = jnp.exp2(scores_kgx - largest_kg1)
        largest_ref[...] = largest_kg1
        denominator_ref[...] = jnp.sum(powers_kgx, axis=2, keepdims=True)
        sum_ref[...] = _weighted(powers_kgx, beside_v_ref[...], slots_last=False)

    @pl.when(first < length)
    def _():
        v = v_ref[...]
        if slots % block:
            # Numbers that are fetched from behind the last slot may be anything, also NaN.
            slot = first + lax.broadcasted_iota(jnp.int32, v.shape, 2 if slots_last else 1)
            v = jnp.where(slot < slots, v, jnp.zeros_like(v))
        scores_kgs = _scores(q_ref[...], k_ref[...], slots_last=slots_last)
        slot_kgs = first + lax.broadcasted_iota(jnp.int32, scores_kgs.shape, 2)
        scores_kgs = jnp.where(slot_kgs < length, scores_kgs, MASKED)
        largest_kg1 = jnp.maximum(largest_ref[...], jnp.max(scores_kgs, axis=2, keepdims=True))
        shrink_kg1, powers_kgs = jnp.exp2(largest_ref[...] - largest_kg1), jnp.exp2(scores_kgs - largest_kg1)
        largest_ref[...] = largest_kg1
        denominator_ref[...] = denominator_ref[...] * shrink_kg1 + jnp.sum(powers_kgs, axis=2, keepdims=True)
        sum_ref[...] = sum_ref[...] * shrink_kg1 + _weighted(powers_kgs, v, slots_last=slots_last)

    @pl.when(first + block >= length)
    def _():
        o_ref[...] = (sum_ref[...] / denominator_ref[...]).astype(o_ref.dtype)


def _scores(q_kgh: Array, keys: Array, *, slots_last: bool) -> Array:
    """Returns q kᵀ · log₂ e / √h, for a softmax with powers of 2."""
    return _product(q_kgh, keys, contract=1 if slots_last else 2) * (q_kgh.shape[2] ** -0.5 * LOG2_E)


def _weighted(powers_kgs: Array, values: Array, *, slots_last: bool) -> Array:
    return _product(powers_kgs.astype(values.dtype), values, contract=2 if slots_last else 1)


def _product(a: Array, b: Array, contract: int) -> Array:
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    numbers = (((2,), (contract,)), ((0,), (0,)))
    return lax.dot_general(a, b, numbers, precision=precision, preferred_element_type=jnp.float32)

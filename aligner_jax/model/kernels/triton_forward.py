"""Forward pass of flash attention on GPUs: one program per block of queries of a head (shape legend: llama.py)."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float

from aligner_jax.model.kernels.triton_blocks import first_key_blocks, padded
from aligner_jax.model.kernels.triton_tiles import (
    LOG2_E,
    MASKED,
    Index,
    Operands,
    Ref,
    Sizes,
    both,
    head_spec,
    load_tile,
    load_values,
    positions,
    query_head_specs,
    row_spec,
    sizes_of,
    statistic_spec,
    store_tile,
    store_values,
)

_TILES = 1  # A program holds its queries.


def forward(operands: Operands[Array], *, interpret: bool) -> tuple[Float[Array, "b t n h"], Float[Array, "b n t"]]:
    """Returns the output, and the logarithms of the denominators of the softmax in float32."""
    b, t, n, h = operands.q.shape
    sizes = sizes_of(operands, tiles=_TILES)
    first_bi = first_visited_keys(operands, sizes)
    return pl.pallas_call(
        functools.partial(aligner_attention_forward, sizes=sizes),
        grid=(pl.cdiv(t, sizes.blocks.own), n, b),
        in_specs=(query_head_specs(operands), row_spec(first_bi)),
        out_specs=(head_spec(operands.q), statistic_spec(t)),
        out_shape=(
            jax.ShapeDtypeStruct(operands.q.shape, operands.q.dtype),
            jax.ShapeDtypeStruct((b, n, t), jnp.float32),
        ),
        compiler_params=sizes.blocks.compiler_params(padded(h), _TILES),
        interpret=interpret,
        name="aligner_attention_forward",
    )(operands, first_bi)


def aligner_attention_forward(refs: Operands[Ref], first_ref: Ref | None, o_ref: Ref, log_ref: Ref, *, sizes: Sizes):
    """Computes a block of the output; lowering names the kernel after this function."""
    # The last blocks visit the most keys, so they start first.
    i = pl.cdiv(sizes.length, sizes.blocks.own) - 1 - pl.program_id(0)
    query, h = sizes.blocks.own, sizes.head_dim
    q_th = load_tile(refs.q, i, (query, h), sizes.length)

    def add_keys(k_sh: Array, v_sh: Array, mask_ts: Array | None, sums: tuple[Array, Array, Array]):
        o_th, largest_t, denominator_t = sums
        scores_ts = masked_scores(q_th, k_sh, mask_ts, h)
        new_largest_t = jnp.maximum(largest_t, jnp.max(scores_ts, axis=1))
        shrink_t, powers_ts = jnp.exp2(largest_t - new_largest_t), jnp.exp2(scores_ts - new_largest_t[:, None])
        o_th = o_th * shrink_t[:, None] + plgpu.dot(powers_ts.astype(v_sh.dtype), v_sh)
        return o_th, new_largest_t, denominator_t * shrink_t + jnp.sum(powers_ts, axis=1)

    nothing = jnp.zeros((query, padded(h)), jnp.float32), jnp.full(query, -jnp.inf), jnp.zeros(query, jnp.float32)
    o_th, largest_t, denominator_t = visit_keys(refs, first_ref, i, sizes, add_keys, nothing)
    store_tile(o_ref, i, o_th / denominator_t[:, None], sizes.length, h)
    store_values(log_ref, i, largest_t / LOG2_E + jnp.log(denominator_t), sizes.length)


def first_visited_keys(operands: Operands[Array], sizes: Sizes) -> Array | None:
    """Returns the first block of keys that each block of queries visits; None if rows are not packed."""
    if operands.segments is None:
        return None
    return first_key_blocks(operands.segments, sizes.blocks.own, sizes.blocks.streamed)


def visit_keys[T](
    refs: Operands[Ref],
    first_ref: Ref | None,
    i: Index,
    sizes: Sizes,
    add_keys: Callable[[Array, Array, Array | None, T], T],
    sums: T,
) -> T:
    """Adds every block of keys that a block of queries may attend to.

    Args:
      refs, first_ref: references of the program.
      i: index of the block of queries.
      sizes: sizes of the program.
      add_keys: maps keys, values, a mask of pairs (None: all may attend) and the sums so far to the new sums.
      sums: sums without any key.
    """
    t, p, h, query, key = sizes.length, sizes.before, sizes.head_dim, sizes.blocks.own, sizes.blocks.streamed
    q_positions_t1 = positions(i, query)[:, None]
    q_ids_t = None if refs.segments is None else load_values(refs.segments, i, query, t)

    def add_before(j: Index, sums: T) -> T:
        k_sh, v_sh = (load_tile(ref, j, (key, h), p) for ref in (refs.before_k, refs.before_v))
        return add_keys(k_sh, v_sh, positions(j, key)[None, :] < p if p % key else None, sums)

    def add_text(j: Index, sums: T, *, causal: bool) -> T:
        k_sh, v_sh = (load_tile(ref, j, (key, h), t) for ref in (refs.k, refs.v))
        mask_ts = positions(j, key)[None, :] <= q_positions_t1 if causal else None
        if q_ids_t is not None:
            mask_ts = both(mask_ts, q_ids_t[:, None] == load_values(refs.segments, j, key, t)[None, :])
        return add_keys(k_sh, v_sh, mask_ts, sums)

    if p:
        sums = lax.fori_loop(0, pl.cdiv(p, key), add_before, sums)
    end = lax.div(jnp.minimum((i + 1) * query, t) + key - 1, key)
    if first_ref is not None:
        return lax.fori_loop(first_ref[i], end, functools.partial(add_text, causal=True), sums)
    below_diagonal = lax.div(i * query + 1, key)
    sums = lax.fori_loop(0, below_diagonal, functools.partial(add_text, causal=False), sums)
    return lax.fori_loop(below_diagonal, end, functools.partial(add_text, causal=True), sums)


def masked_scores(a_xh: Array, b_yh: Array, mask_xy: Array | None, head_dim: int) -> Array:
    """Returns a bᵀ · log₂ e / √h in float32, for a softmax with powers of 2, which the hardware computes."""
    scores_xy = plgpu.dot(a_xh, b_yh.T) * (head_dim**-0.5 * LOG2_E)
    return scores_xy if mask_xy is None else jnp.where(mask_xy, scores_xy, MASKED)

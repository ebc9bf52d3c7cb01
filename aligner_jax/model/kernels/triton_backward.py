"""Backward pass of flash attention on GPUs (arXiv 2307.08691; shape legend: llama.py).

One kernel computes the gradient of the queries, a program per block of queries of a head. The other computes those of
keys and values, a program per block of keys of a kv head: it sums over the group's query heads, so that no key is
repeated and nothing is added in memory.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float

from aligner_jax.model.kernels.triton_blocks import end_query_blocks, padded
from aligner_jax.model.kernels.triton_forward import first_visited_keys, masked_scores, visit_keys
from aligner_jax.model.kernels.triton_tiles import (
    LOG2_E,
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
)

_TILES = 2  # A program holds queries and cotangents, or keys and values.


def query_gradient(
    operands: Operands[Array],
    do_btnh: Float[Array, "b t n h"],
    log_bnt: Float[Array, "b n t"],
    delta_bnt: Float[Array, "b n t"],
    *,
    interpret: bool,
) -> Float[Array, "b t n h"]:
    """Returns the gradient of the queries.

    Args:
      operands: inputs of the forward pass.
      do_btnh: cotangent of the output.
      log_bnt: log-denominators that the forward pass returned.
      delta_bnt: Σ_h o · do in float32.
      interpret: True runs the arithmetic on any platform.
    """
    b, t, n, h = operands.q.shape
    sizes = sizes_of(operands, tiles=_TILES)
    first_bi = first_visited_keys(operands, sizes)
    specs = query_head_specs(operands), head_spec(do_btnh), statistic_spec(t), statistic_spec(t), row_spec(first_bi)
    return pl.pallas_call(
        functools.partial(aligner_attention_backward_dq, sizes=sizes),
        grid=(pl.cdiv(t, sizes.blocks.own), n, b),
        in_specs=specs,
        out_specs=head_spec(operands.q),
        out_shape=jax.ShapeDtypeStruct(operands.q.shape, operands.q.dtype),
        compiler_params=sizes.blocks.compiler_params(padded(h), _TILES),
        interpret=interpret,
        name="aligner_attention_backward_dq",
    )(operands, do_btnh, log_bnt, delta_bnt, first_bi)


def aligner_attention_backward_dq(
    refs: Operands[Ref], do_ref: Ref, log_ref: Ref, delta_ref: Ref, first_ref: Ref | None, dq_ref: Ref, *, sizes: Sizes
):
    """Computes a block of the gradient of the queries; lowering names the kernel after this function."""
    i = pl.cdiv(sizes.length, sizes.blocks.own) - 1 - pl.program_id(0)
    t, query, h = sizes.length, sizes.blocks.own, sizes.head_dim
    q_th, do_th = (load_tile(ref, i, (query, h), t) for ref in (refs.q, do_ref))
    log_t, delta_t = (load_values(ref, i, query, t) for ref in (log_ref, delta_ref))
    log2_t = log_t * LOG2_E

    def add_keys(k_sh: Array, v_sh: Array, mask_ts: Array | None, dq_th: Array) -> Array:
        weights_ts = jnp.exp2(masked_scores(q_th, k_sh, mask_ts, h) - log2_t[:, None])
        d_scores_ts = weights_ts * (plgpu.dot(do_th, v_sh.T) - delta_t[:, None]) * h**-0.5
        return dq_th + plgpu.dot(d_scores_ts.astype(k_sh.dtype), k_sh)

    dq_th = visit_keys(refs, first_ref, i, sizes, add_keys, jnp.zeros((query, padded(h)), jnp.float32))
    store_tile(dq_ref, i, dq_th, t, h)


def key_gradients(
    operands: Operands[Array],
    do_btnh: Float[Array, "b t n h"],
    log_bnt: Float[Array, "b n t"],
    delta_bnt: Float[Array, "b n t"],
    *,
    before: bool = False,
    interpret: bool,
) -> tuple[Float[Array, "b s k h"], Float[Array, "b s k h"]]:
    """Returns the gradients of keys and values.

    Args:
      operands, do_btnh, log_bnt, delta_bnt: arguments of `query_gradient`.
      before: True for the keys and values before the text's, False for the text's.
      interpret: True runs the arithmetic on any platform.
    """
    _, t, n, h = operands.q.shape
    k_bskh, v_bskh = (operands.before_k, operands.before_v) if before else (operands.k, operands.v)
    assert k_bskh is not None
    assert v_bskh is not None
    b, s, k, _ = k_bskh.shape
    group, sizes = n // k, sizes_of(operands, tiles=_TILES)
    segments_bt, end_bj = None if before else operands.segments, None
    if segments_bt is not None:
        end_bj = end_query_blocks(segments_bt, sizes.blocks.streamed, sizes.blocks.own)
    statistics = statistic_spec(t, group)
    gradient = jax.ShapeDtypeStruct(k_bskh.shape, k_bskh.dtype)
    return pl.pallas_call(
        functools.partial(aligner_attention_backward_dkv, sizes=sizes, group=group, num_keys=s, causal=not before),
        grid=(pl.cdiv(s, sizes.blocks.own), k, b),
        in_specs=(
            head_spec(operands.q, group), head_spec(k_bskh), head_spec(v_bskh), row_spec(segments_bt),
            head_spec(do_btnh, group), statistics, statistics, row_spec(end_bj),
        ),
        out_specs=(head_spec(k_bskh), head_spec(v_bskh)),
        out_shape=(gradient, gradient),
        compiler_params=sizes.blocks.compiler_params(padded(h), _TILES),
        interpret=interpret,
        name="aligner_attention_backward_dkv",
    )(operands.q, k_bskh, v_bskh, segments_bt, do_btnh, log_bnt, delta_bnt, end_bj)  # fmt: skip


def aligner_attention_backward_dkv(
    q_ref: Ref, k_ref: Ref, v_ref: Ref, segments_ref: Ref | None, do_ref: Ref, log_ref: Ref, delta_ref: Ref,
    end_ref: Ref | None, dk_ref: Ref, dv_ref: Ref, *, sizes: Sizes, group: int, num_keys: int, causal: bool,
):  # fmt: skip
    """Computes a block of the gradients of keys and values; lowering names the kernel after this function."""
    j = pl.program_id(0)
    t, h, key, query = sizes.length, sizes.head_dim, sizes.blocks.own, sizes.blocks.streamed
    k_sh, v_sh = (load_tile(ref, j, (key, h), num_keys) for ref in (k_ref, v_ref))
    k_positions_s1 = positions(j, key)[:, None]
    k_ids_s = None if segments_ref is None else load_values(segments_ref, j, key, t)

    # Scores are transposed (keys before queries), so that the weights need not be transposed for the products with
    # queries and cotangents. Queries outside the row need no mask: their cotangents and deltas are 0.
    def add_queries(head: Index, i: Index, sums: tuple[Array, Array], *, masked: bool) -> tuple[Array, Array]:
        dk_sh, dv_sh = sums
        q_th, do_th = (load_tile(ref, i, (query, h), t, head) for ref in (q_ref, do_ref))
        log_t, delta_t = (load_values(ref, i, query, t, head) for ref in (log_ref, delta_ref))
        mask_st = k_positions_s1 <= positions(i, query)[None, :] if masked else None
        if k_ids_s is not None:
            mask_st = both(mask_st, k_ids_s[:, None] == load_values(segments_ref, i, query, t)[None, :])
        weights_st = jnp.exp2(masked_scores(k_sh, q_th, mask_st, h) - (log_t * LOG2_E)[None, :])
        dv_sh += plgpu.dot(weights_st.astype(do_th.dtype), do_th)
        d_scores_st = weights_st * (plgpu.dot(v_sh, do_th.T) - delta_t[None, :]) * h**-0.5
        return dk_sh + plgpu.dot(d_scores_st.astype(q_th.dtype), q_th), dv_sh

    num_blocks = pl.cdiv(t, query)
    first = lax.div(j * key, query) if causal else 0
    # In this block and those after it, every query may attend to every key of the program.
    clear = jnp.minimum(lax.div(j * key + key + query - 2, query), num_blocks) if causal else 0
    end = num_blocks if end_ref is None else end_ref[j]

    def add_head(head: Index, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        with_mask, without_mask = (functools.partial(add_queries, head, masked=masked) for masked in (True, False))
        if end_ref is not None:
            return lax.fori_loop(first, end, with_mask, sums)
        sums = lax.fori_loop(first, clear, with_mask, sums) if causal else sums
        return lax.fori_loop(clear, end, without_mask, sums)

    nothing = jnp.zeros((key, padded(h)), jnp.float32)
    dk_sh, dv_sh = lax.fori_loop(0, group, add_head, (nothing, nothing))
    store_tile(dk_ref, j, dk_sh, num_keys, h)
    store_tile(dv_ref, j, dv_sh, num_keys, h)

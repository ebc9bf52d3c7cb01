"""Backward program: gradients of queries, keys, values and prefix in one pass over the scores.

Keys, values and the sums of their gradients stay in VMEM while the program loops over queries. So each block of scores
is recomputed once, for all gradients.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from aligner_jax.model.kernels.arithmetic import LOG2_E, masked, matmul, matmul_transposed, prefix_weights, scores
from aligner_jax.model.kernels.blocks import BlockSizes
from aligner_jax.model.kernels.operands import (
    Operands,
    PrefixPair,
    Ref,
    Refs,
    arrays,
    block_spec,
    chunk_of,
    cost,
    first_keys,
    in_specs,
    when,
)


class Gradients[T](NamedTuple):
    """Gradients in the operands' shapes and dtypes; the prefix's are float32, per row and query head."""

    q: T
    k: T
    v: T
    prefix: PrefixPair[T] | None


def backward(
    operands: Operands,
    text_o_bnth: Float[Array, "b n t h"],
    log_bn1t: Float[Array, "b n 1 t"],
    do_bnth: Float[Array, "b n t h"],
    blocks: BlockSizes,
    *,
    prefix_tokens: int,
    interpret: bool | pltpu.InterpretParams = False,
) -> Gradients[Array]:
    """Computes the gradients of the operands.

    Args:
      operands: inputs of the forward pass.
      text_o_bnth: `Outputs.text_o` of `forward`, or `Outputs.o` without a prefix.
      log_bn1t: `Outputs.log` of `forward`.
      do_bnth: cotangent of the output, in the operands' dtype.
      blocks: block sizes; they must divide the rows.
      prefix_tokens: number of the prefix's rows that are not padding.
      interpret: option of `pl.pallas_call`.
    """
    b, k, t, h = operands.k_bksh.shape
    spans = t // blocks.backward_span
    first_bi = first_keys(operands.segments_b1t, b, t, blocks.query)
    arguments = (first_bi, operands, text_o_bnth, log_bn1t, do_bnth)
    of_span = functools.partial(_of_span, blocks=blocks, prefix_tokens=prefix_tokens, interpret=interpret)

    def add(sums, j):
        dq_bnth, d_prefix = sums
        d = of_span(j, *arguments)
        # The program does not write dq of queries before the span, since they do not see it.
        sees_t1 = (jnp.arange(t) >= j * blocks.backward_span)[:, None]
        # All queries see the first span, so its pass computes the prefix's whole gradient.
        d_prefix = jax.tree.map(lambda new, old: jnp.where(j == 0, new, old), d.prefix, d_prefix)
        return (dq_bnth + jnp.where(sees_t1, d.q, 0), d_prefix), (d.k, d.v)

    if spans == 1:
        d = of_span(jnp.int32(0), *arguments)
    else:
        shapes = jax.eval_shape(of_span, jnp.int32(0), *arguments)
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (shapes.q, shapes.prefix))
        (dq_bnth, d_prefix), of_keys = lax.scan(add, nothing, jnp.arange(spans))
        dk_bksh, dv_bksh = (x_jbksh.transpose(1, 2, 0, 3, 4).reshape(b, k, t, h) for x_jbksh in of_keys)
        d = Gradients(dq_bnth.astype(operands.q_bnth.dtype), dk_bksh, dv_bksh, d_prefix)
    return d if d.prefix is None else d._replace(prefix=d.prefix._replace(k=d.prefix.k * h**-0.5))


def _of_span(
    j, first_bi, operands: Operands, text_o_bnth, log_bn1t, do_bnth,
    *, blocks: BlockSizes, prefix_tokens: int, interpret: bool | pltpu.InterpretParams,
) -> Gradients[Array]:  # fmt: skip
    """Returns the gradients of the keys of span j, and their part of dq, in float32 if there are several spans.

    Each program instance has one row, kv head, query head of the group and block of queries.
    """
    (b, n, t, h), k, group = operands.q_bnth.shape, operands.k_bksh.shape[1], operands.group
    span, query = blocks.backward_span, blocks.query
    spans = t // span

    def where(b, k, g, i, _, j_ref):
        # Blocks before the span do not see it. They keep the index of the first that does, so nothing is fetched.
        return b, k * group + g, jnp.maximum(i, j_ref[0] * (span // query)), j_ref[0]

    specs = in_specs(operands, query, span, where)
    log_spec = block_spec((None, None, 1, query), where, lambda b, n, i, j: (b, n, 0, i))
    dkv_spec = pl.BlockSpec((None, None, span, h), lambda b, k, *_: (b, k, 0, 0))
    dq_shape = jax.ShapeDtypeStruct((b, n, t, h), operands.q_bnth.dtype if spans == 1 else jnp.float32)
    dkv_shape = jax.ShapeDtypeStruct((b, k, span, h), operands.k_bksh.dtype)
    prefix_shape = prefix_spec = None
    if operands.prefix is not None:
        p = operands.prefix.v.shape[2]
        prefix_shape = PrefixPair(*[jax.ShapeDtypeStruct((b, n, p, h), jnp.float32)] * 2)
        prefix_spec = PrefixPair(*[block_spec((None, None, p, h), where, lambda b, n, i, j: (b, n, 0, 0))] * 2)
    (gradients,) = pl.pallas_call(
        functools.partial(_program, blocks=blocks, spans=spans, group=group, prefix_tokens=prefix_tokens),
        out_shape=(Gradients(dq_shape, dkv_shape, dkv_shape, prefix_shape),),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(b, k, group, t // query),
            in_specs=[specs, specs.q, log_spec, specs.q],
            out_specs=(Gradients(specs.q, dkv_spec, dkv_spec, prefix_spec),),
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in ((h, query), (span, h), (span, h))],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary"), vmem_limit_bytes=blocks.vmem_bytes
        ),
        cost_estimate=cost(operands, products=5, passes=2),
        name="aligner_attention_backward",
        interpret=interpret,
    )(first_bi, jnp.reshape(j, 1), arrays(operands), text_o_bnth, log_bn1t, do_bnth)
    return gradients


class _Queries(NamedTuple):
    """Values of a block of queries that every block of keys reads; log_1t is to base 2, like the scores."""

    q_th: jax.Array
    do_th: jax.Array
    log_1t: jax.Array
    delta_1t: jax.Array


def _program(
    first_ref, span_ref, refs: Refs[Ref], text_o_ref, log_ref, do_ref, out: Gradients[Ref], dq_ht_ref, dk_ref, dv_ref,
    *, blocks: BlockSizes, spans: int, group: int, prefix_tokens: int,
):  # fmt: skip
    span, g, i = span_ref[0], pl.program_id(2), pl.program_id(3)
    begin, position = span * blocks.backward_span, i * blocks.query
    first, is_last = first_ref[pl.program_id(0), i], (g == group - 1) & (i == pl.num_programs(3) - 1)

    if group > 1:

        @pl.when((g == 0) & (i == 0))
        def _():
            dk_ref[...] = jnp.zeros_like(dk_ref)
            dv_ref[...] = jnp.zeros_like(dv_ref)

    @when(position >= begin, always=spans == 1)
    def _():
        do_th = do_ref[...]
        product_th = text_o_ref[...].astype(jnp.float32) * do_th.astype(jnp.float32)
        queries = _Queries(refs.q[...], do_th, log_ref[...] * LOG2_E, jnp.sum(product_th.T, axis=0, keepdims=True))
        dq_ht_ref[...] = jnp.zeros_like(dq_ht_ref)
        if refs.prefix is not None and out.prefix is not None:
            first_block = span * (blocks.backward_span // blocks.query)
            dq_ht = _add_prefix(refs.prefix, queries, out.prefix, prefix_tokens, first=i == first_block)

            @when(span == 0, always=spans == 1)
            def _():
                dq_ht_ref[...] = dq_ht

        add = functools.partial(_add_keys, refs, queries, dq_ht_ref, dk_ref, dv_ref)

        @when(position < begin + blocks.backward_span, always=spans == 1)
        def _():
            for offset in range(0, blocks.query, blocks.diagonal):
                keys = chunk_of(position - begin + offset, blocks.diagonal)
                # If the group is 1, no earlier queries have added to the gradients of these keys.
                add(keys, slice(offset, blocks.query), causal=True, fresh=group == 1)

        def block(index, _):
            for offset in range(0, blocks.key, blocks.backward_chunk):
                keys = chunk_of(index * blocks.key + offset, blocks.backward_chunk)
                add(keys, slice(0, blocks.query), causal=False, fresh=False)

        start = lax.div(jnp.maximum(first - begin, 0), blocks.key)
        end = lax.div(jnp.minimum(position - begin, blocks.backward_span), blocks.key)
        lax.fori_loop(start, end, block, None)
        scale = refs.q.shape[1] ** -0.5
        out.q[...] = (dq_ht_ref[...] * scale).T.astype(out.q.dtype)

    @pl.when(is_last)
    def _():
        out.k[...] = (dk_ref[...] * refs.q.shape[1] ** -0.5).astype(out.k.dtype)
        out.v[...] = dv_ref[...].astype(out.v.dtype)


def _add_keys(
    refs: Refs[Ref],
    queries: _Queries,
    dq_ht_ref,
    dk_ref,
    dv_ref,
    keys: pl.Slice,
    lanes: slice,
    *,
    causal: bool,
    fresh: bool,
):
    """Adds the part of these keys and queries to the gradients. `fresh`: overwrites the gradients of the keys."""
    k_sh, v_sh = refs.k[keys, :], refs.v[keys, :]
    q_th, do_th = queries.q_th[lanes], queries.do_th[lanes]
    weights_st = jnp.exp2(scores(k_sh, q_th) - queries.log_1t[:, lanes])
    weights_st = masked(weights_st, 0.0, refs.segments(keys, lanes), causal=causal)
    d_weights_st = matmul_transposed(v_sh, do_th)
    d_scores_st = (weights_st * (d_weights_st - queries.delta_1t[:, lanes])).astype(k_sh.dtype)
    dk_sh, dv_sh = matmul(d_scores_st, q_th), matmul(weights_st.astype(k_sh.dtype), do_th)
    dk_ref[keys, :] = dk_sh if fresh else dk_ref[keys, :] + dk_sh
    dv_ref[keys, :] = dv_sh if fresh else dv_ref[keys, :] + dv_sh
    dq_ht_ref[:, lanes] += matmul(k_sh.T, d_scores_st)


def _add_prefix(prefix: PrefixPair[Ref], queries: _Queries, out: PrefixPair[Ref], num_tokens: int, *, first):
    """Adds to the prefix's gradients; returns its part of dqᵀ. `first`: overwrites, as the head's first block does."""
    k_ph, v_ph = prefix.k[...], prefix.v[...]
    weights_pt = prefix_weights(k_ph, queries.q_th, num_tokens)
    d_weights_pt = matmul_transposed(v_ph, queries.do_th)
    delta_1t = jnp.sum(weights_pt * d_weights_pt, axis=0, keepdims=True)
    d_scores_pt = (weights_pt * (d_weights_pt - delta_1t)).astype(k_ph.dtype)
    dk_ph, dv_ph = matmul(d_scores_pt, queries.q_th), matmul(weights_pt.astype(k_ph.dtype), queries.do_th)

    @pl.when(first)
    def _():
        out.k[...] = dk_ph
        out.v[...] = dv_ph

    @pl.when(jnp.logical_not(first))
    def _():
        out.k[...] += dk_ph
        out.v[...] += dv_ph

    return matmul(k_ph.T, d_scores_pt)

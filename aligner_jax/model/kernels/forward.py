"""Forward program: causal flash attention of a block of queries, plus the gated prefix."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from aligner_jax.model.kernels.arithmetic import LOG2_E, MASKED, masked, matmul, prefix_weights, scores
from aligner_jax.model.kernels.blocks import BlockSizes
from aligner_jax.model.kernels.operands import (
    Operands,
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


class Outputs[T](NamedTuple):
    """Results of a forward pass; `text_o` and `log` are residuals of the backward pass.

    Attributes:
      o: output of text and prefix together, [b, n, t, h].
      text_o: the text's part of the output; None if there is no prefix.
      log: logarithms of the denominators of the text's softmax, [b, n, 1, t] in float32.
    """

    o: T
    text_o: T | None = None
    log: T | None = None


def forward(
    operands: Operands,
    blocks: BlockSizes,
    *,
    prefix_tokens: int,
    residuals: bool,
    interpret: bool | pltpu.InterpretParams = False,
) -> Outputs[Array]:
    """Computes the output and, with `residuals`, the residuals of `backward`.

    Each program instance has one row, query head, block of queries and span of keys. A block of queries visits the span
    of its diagonal first, then the spans before it, from the first that holds keys of its segments. The other spans are
    not fetched.

    Args:
      operands: inputs of the forward pass.
      blocks: block sizes; they must divide the rows.
      prefix_tokens: number of the prefix's rows that are not padding.
      residuals: True for training.
      interpret: option of `pl.pallas_call`.
    """
    b, n, t, h = operands.q_bnth.shape
    span, query = blocks.forward_span, blocks.query

    def where(b, n, i, j, first_ref):
        return b, n, i, _span(first_ref[b, i], i, j, blocks)[0]

    specs = in_specs(operands, query, span, where)
    o_shape = jax.ShapeDtypeStruct((b, n, t, h), operands.q_bnth.dtype)
    log_spec = block_spec((None, None, 1, query), where, lambda b, n, i, j: (b, n, 0, i))
    out_shape, out_specs = Outputs(o_shape), Outputs(specs.q)
    if residuals:
        separate = operands.prefix is not None
        log_shape = jax.ShapeDtypeStruct((b, n, 1, t), jnp.float32)
        out_shape = Outputs(o_shape, o_shape if separate else None, log_shape)
        out_specs = Outputs(specs.q, specs.q if separate else None, log_spec)
    (outputs,) = pl.pallas_call(
        functools.partial(_program, blocks=blocks, spans=t // span, prefix_tokens=prefix_tokens),
        out_shape=(out_shape,),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(b, n, t // query, t // span),
            in_specs=[specs],
            out_specs=(out_specs,),
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in [(1, query)] * 2 + [(h, query)] * 2],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary"), vmem_limit_bytes=blocks.vmem_bytes
        ),
        cost_estimate=cost(operands, products=2, passes=1),
        name="aligner_attention_forward",
        interpret=interpret,
    )(first_keys(operands.segments_b1t, b, t, query), arrays(operands))
    return outputs


def _span(first, i, j, blocks: BlockSizes):
    """Returns the j-th span that block i of the queries visits, and True if that span has keys for it."""
    span = blocks.forward_span
    last, before = lax.div(i * blocks.query, span), lax.div(first, span) + j - 1
    # A span without keys for the block repeats the preceding index, so that nothing is fetched.
    visited = jnp.where(j == 0, last, jnp.minimum(before, jnp.maximum(last - 1, lax.div(first, span))))
    return visited, (j == 0) | (before < last)


class _Sums(NamedTuple):
    """Running sums of the online softmax per query; denominator and output are relative to the largest score."""

    largest_1t: Ref
    denominator_1t: Ref
    o_ht: Ref


def _program(
    first_ref, refs: Refs[Ref], out: Outputs[Ref], largest_ref, denominator_ref, o_ht_ref, prefix_o_ht_ref,
    *, blocks: BlockSizes, spans: int, prefix_tokens: int,
):  # fmt: skip
    i, j = pl.program_id(2), pl.program_id(3)
    first = first_ref[pl.program_id(0), i]
    span, to_do = _span(first, i, j, blocks)
    begin, position = span * blocks.forward_span, i * blocks.query
    sums = _Sums(largest_ref, denominator_ref, o_ht_ref)

    @when(j == 0, always=spans == 1)
    def _():
        if refs.prefix is not None:
            values_ph = refs.prefix.v[...]
            weights_pt = prefix_weights(refs.prefix.k[...], refs.q[...], prefix_tokens)
            prefix_o_ht_ref[...] = matmul(values_ph.T, weights_pt.astype(values_ph.dtype))
        offsets = range(0, blocks.query, blocks.diagonal)
        keys = [chunk_of(position - begin + offset, blocks.diagonal) for offset in offsets]
        _add_keys(refs, keys, [slice(offset, blocks.query) for offset in offsets], sums, diagonal=True)

    def block(index, _):
        offsets = range(0, blocks.key, blocks.forward_chunk)
        keys = [chunk_of(index * blocks.key + offset, blocks.forward_chunk) for offset in offsets]
        _add_keys(refs, keys, [slice(0, blocks.query)] * len(keys), sums, diagonal=False)

    # The diagonal's span is visited up to the diagonal, the spans before it to their ends.
    start = lax.div(jnp.maximum(first - begin, 0), blocks.key)
    end = lax.div(jnp.minimum(position - begin, blocks.forward_span), blocks.key)
    lax.fori_loop(start, jnp.where(to_do, end, start), block, None)

    @when(j == spans - 1, always=spans == 1)
    def _():
        o_ht = sums.o_ht[...] * (1 / sums.denominator_1t[...])
        if out.text_o is not None:
            out.text_o[...] = o_ht.T.astype(out.text_o.dtype)
        if refs.prefix is not None:
            o_ht += prefix_o_ht_ref[...]
        out.o[...] = o_ht.T.astype(out.o.dtype)
        if out.log is not None:
            out.log[...] = sums.largest_1t[...] / LOG2_E + jnp.log(sums.denominator_1t[...])


def _add_keys(refs: Refs[Ref], key_chunks: list[pl.Slice], query_chunks: list[slice], sums: _Sums, *, diagonal: bool):
    """Adds chunks to the online softmax (arXiv 1805.02867). Chunks of the diagonal come first and set the sums."""
    # All products come first, so that the matrix units compute a later chunk during the softmax of an earlier one.
    all_scores = [
        masked(scores(refs.k[keys, :], refs.q[queries, :]), MASKED, refs.segments(keys, queries), causal=diagonal)
        for keys, queries in zip(key_chunks, query_chunks, strict=True)
    ]
    for keys, queries, scores_st in zip(key_chunks, query_chunks, all_scores, strict=True):
        first = diagonal and queries.start == 0
        largest_1t = jnp.max(scores_st, axis=0, keepdims=True)
        if not first:
            largest_1t = jnp.maximum(largest_1t, sums.largest_1t[:, queries])
        powers_st = jnp.exp2(scores_st - largest_1t)
        denominator_1t = jnp.sum(powers_st, axis=0, keepdims=True)
        v_sh = refs.v[keys, :]
        o_ht = matmul(v_sh.T, powers_st.astype(v_sh.dtype))
        if not first:
            shrink_1t = jnp.exp2(sums.largest_1t[:, queries] - largest_1t)
            denominator_1t += sums.denominator_1t[:, queries] * shrink_1t
            o_ht += sums.o_ht[:, queries] * shrink_1t
        sums.largest_1t[:, queries] = largest_1t
        sums.denominator_1t[:, queries] = denominator_1t
        sums.o_ht[:, queries] = o_ht

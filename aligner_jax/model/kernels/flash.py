"""Flash attention for TPUs with the gated prefix fused into it (Pallas, lowered by Mosaic).

Flash attention (arXiv 2205.14135; backward pass: arXiv 2307.08691) keeps scores on the chip. Here the prefix's scores
stay there too: the program that holds a block of queries in VMEM also computes their few prefix scores, and adds the
prefix's output to the text's before writing it.

The backward pass needs delta = Σ_h o · do of the text's softmax alone, so for training the text's own output is written
as well. In exact arithmetic one could subtract the prefix's delta from that of the sum. In bfloat16 that difference is
lost if the prefix's output is large.

These functions take positions before heads, as in the model; XLA fuses the transpositions with the surrounding
operations.
"""

import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from aligner_jax.model.kernels.backward import backward as _backward
from aligner_jax.model.kernels.blocks import BlockSizes, check_supported, default_blocks
from aligner_jax.model.kernels.forward import forward as _forward
from aligner_jax.model.kernels.kernel import Gradients, Inputs, Kernel, Outputs
from aligner_jax.model.kernels.operands import Operands, PrefixPair

PREFIX_ROWS = 16
"""Prefixes are padded to a multiple of this, the sublanes of a bfloat16 register."""


def forward(
    q_btnh: Float[Array, "b t n h"],
    k_bskh: Float[Array, "b s k h"],
    v_bskh: Float[Array, "b s k h"],
    segment_ids_bt: Int[Array, "b t"] | None = None,
    prefix_k_bpkh: Float[Array, "#b p k h"] | None = None,
    gated_v_bpnh: Float[Array, "#b p n h"] | None = None,
    *,
    residuals: bool = False,
    blocks: BlockSizes | None = None,
    interpret: bool | pltpu.InterpretParams = False,
) -> tuple[Float[Array, "b t n h"], Float[Array, "b t n h"] | None, Float[Array, "b n t"] | None]:
    """Computes attention with a gated prefix.

    Args:
      q_btnh, k_bskh: queries and keys, already rotated.
      v_bskh: values.
      segment_ids_bt: positions attend only to positions with the same segment id.
      prefix_k_bpkh: keys of the prefix; a leading axis of 1 is shared by all rows.
      gated_v_bpnh: values of the prefix for each query head, multiplied by the head's gate.
      residuals: True also returns the residuals of the backward pass.
      blocks: block sizes; by default `default_blocks`.
      interpret: True runs the arithmetic on any platform; InterpretParams also simulates the TPU's memories.

    Returns:
      The output, and the residuals or None: the text's part of the output, and the logarithms of the denominators of
      the text's softmax.

    Raises:
      InputError: the blocks do not divide the row.
    """
    operands, num_tokens = _operands(q_btnh, k_bskh, v_bskh, segment_ids_bt, prefix_k_bpkh, gated_v_bpnh)
    blocks = _blocks(operands, blocks)
    out = _forward(operands, blocks, prefix_tokens=num_tokens, residuals=residuals, interpret=interpret)
    if out.log is None:
        return _swap(out.o), None, None
    return _swap(out.o), _swap(out.o if out.text_o is None else out.text_o), out.log[:, :, 0]


def backward(
    text_o_btnh: Float[Array, "b t n h"],
    log_bnt: Float[Array, "b n t"],
    do_btnh: Float[Array, "b t n h"],
    q_btnh: Float[Array, "b t n h"],
    k_bskh: Float[Array, "b s k h"],
    v_bskh: Float[Array, "b s k h"],
    segment_ids_bt: Int[Array, "b t"] | None = None,
    prefix_k_bpkh: Float[Array, "#b p k h"] | None = None,
    gated_v_bpnh: Float[Array, "#b p n h"] | None = None,
    *,
    blocks: BlockSizes | None = None,
    interpret: bool | pltpu.InterpretParams = False,
) -> tuple[Array, Array, Array, Array | None, Array | None]:
    """Returns the gradients of q_btnh, k_bskh, v_bskh, prefix_k_bpkh and gated_v_bpnh, each in its dtype.

    Args:
      text_o_btnh, log_bnt: residuals of `forward` for the same inputs.
      do_btnh: cotangent of the output.
      q_btnh, k_bskh, v_bskh, segment_ids_bt, prefix_k_bpkh, gated_v_bpnh: inputs of `forward`.
      blocks, interpret: options of `forward`.

    Raises:
      InputError: the blocks do not divide the row.
    """
    operands, num_tokens = _operands(q_btnh, k_bskh, v_bskh, segment_ids_bt, prefix_k_bpkh, gated_v_bpnh)
    blocks = _blocks(operands, blocks)
    do_bnth = _swap(do_btnh.astype(q_btnh.dtype))
    d = _backward(
        operands,
        _swap(text_o_btnh),
        log_bnt[:, :, None],
        do_bnth,
        blocks,
        prefix_tokens=num_tokens,
        interpret=interpret,
    )
    d_text = _swap(d.q), _swap(d.k), _swap(d.v)
    if d.prefix is None or prefix_k_bpkh is None or gated_v_bpnh is None:
        return *d_text, None, None
    b, n, *p_and_h = d.prefix.k.shape
    d_prefix_k_bkph = jnp.sum(d.prefix.k.reshape(b, n // operands.group, operands.group, *p_and_h), axis=2)
    return *d_text, _like(prefix_k_bpkh, d_prefix_k_bkph), _like(gated_v_bpnh, d.prefix.v)


def _operands(q_btnh, k_bskh, v_bskh, segment_ids_bt, prefix_k_bpkh, gated_v_bpnh) -> tuple[Operands, int]:
    segments_b1t = None if segment_ids_bt is None else segment_ids_bt[:, None].astype(jnp.int32)
    text = _swap(q_btnh), _swap(k_bskh), _swap(v_bskh)
    if prefix_k_bpkh is None or gated_v_bpnh is None:
        return Operands(*text, None, segments_b1t), 0
    num_tokens = prefix_k_bpkh.shape[1]
    padding = [(0, 0), (0, 0), (0, -num_tokens % PREFIX_ROWS), (0, 0)]
    prefix = (jnp.pad(_swap(x.astype(q_btnh.dtype)), padding) for x in (prefix_k_bpkh, gated_v_bpnh))
    return Operands(*text, PrefixPair(*prefix), segments_b1t), num_tokens


def _blocks(operands: Operands, blocks: BlockSizes | None) -> BlockSizes:
    length = operands.q_bnth.shape[2]
    blocks = blocks or default_blocks(length, operands.q_bnth.dtype)
    blocks.check_length(length)
    return blocks


def _like(x_bpkh, d_bkph):
    """Removes the padding from the rows' gradients, and sums them if the rows share one prefix."""
    if x_bpkh.shape[0] == 1:
        d_bkph = jnp.sum(d_bkph, axis=0, keepdims=True)
    return _swap(d_bkph)[:, : x_bpkh.shape[1]].astype(x_bpkh.dtype)


def _swap(x):
    return x.swapaxes(1, 2)


def kernel(*, blocks: BlockSizes | None = None, interpret: bool | pltpu.InterpretParams = False) -> Kernel:
    """Returns these functions as a `Kernel`, with the given options."""
    options = {"blocks": blocks, "interpret": interpret}

    def run_forward(inputs: Inputs, residuals: bool) -> Outputs:
        return Outputs(*forward(**inputs._asdict(), residuals=residuals, **options))

    def run_backward(inputs: Inputs, text_o_btnh, log_bnt, do_btnh) -> Gradients:
        return Gradients(*backward(text_o_btnh, log_bnt, do_btnh, **inputs._asdict(), **options))

    return Kernel(check_supported, run_forward, run_backward)

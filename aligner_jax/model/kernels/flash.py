"""Flash attention for TPUs with the gated prefix fused into it (Pallas, lowered by Mosaic).

Flash attention (arXiv 2205.14135; its backward pass, arXiv 2307.08691) keeps scores on the chip. Here the prefix's
scores stay there too: a program that has a block of queries in VMEM computes their few prefix scores as well, and
adds the prefix's output to its own before it writes it. The backward pass needs delta = Σ_h o · do
of the text's softmax alone, so for training the text's own output is written as well. (To subtract the prefix's delta
from that of the sum would do in exact arithmetic; in bfloat16 a loud prefix drowns the difference.)

These functions take positions first, as the model has them; XLA fuses the transpositions into what surrounds them.
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
"""Prefixes are padded to a multiple of this: the sublanes of a register of bfloat16."""


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
    """The fused output; with `residuals` also the text's part of it and the logarithm of its softmax's denominators.

    Args:
      q_btnh, k_bskh: already rotated.
      prefix_k_bpkh: the prefix's keys; a leading axis of 1 is shared by all rows.
      gated_v_bpnh: its values for each query head, times the head's gate.
      blocks: by default `default_blocks`.
      interpret: True runs the arithmetic alone on any platform; InterpretParams simulates the TPU's memories too.

    Raises:
      InputError: blocks that do not divide the row.
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
    """The gradients of q_btnh, k_bskh, v_bskh, prefix_k_bpkh and gated_v_bpnh, each in its dtype.

    Args:
      text_o_btnh, log_bnt: what `forward` returned of the same inputs.
      do_btnh: the gradient of the output.
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
    """A gradient for each row, summed where the rows share one prefix, without the padding."""
    if x_bpkh.shape[0] == 1:
        d_bkph = jnp.sum(d_bkph, axis=0, keepdims=True)
    return _swap(d_bkph)[:, : x_bpkh.shape[1]].astype(x_bpkh.dtype)


def _swap(x):
    return x.swapaxes(1, 2)


def kernel(*, blocks: BlockSizes | None = None, interpret: bool | pltpu.InterpretParams = False) -> Kernel:
    """Returns the record of these functions, with their options."""
    options = {"blocks": blocks, "interpret": interpret}

    def run_forward(inputs: Inputs, residuals: bool) -> Outputs:
        return Outputs(*forward(**inputs._asdict(), residuals=residuals, **options))

    def run_backward(inputs: Inputs, text_o_btnh, log_bnt, do_btnh) -> Gradients:
        return Gradients(*backward(text_o_btnh, log_bnt, do_btnh, **inputs._asdict(), **options))

    return Kernel(check_supported, run_forward, run_backward)

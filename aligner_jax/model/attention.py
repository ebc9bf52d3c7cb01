"""Causal attention with a gated prefix: the one place where an adapter meets the model (shape legend: llama.py).

The text attends to itself as in any LLaMA; beside that, and in a softmax of its own, each query attends to p prefix
tokens, and a gate per head weighs what they give (arXiv 2312.05503, section 3; arXiv 2303.16199, equations 6 to 9):

    o = softmax(q kᵀ / √h + causal) v  +  gate ⊙ softmax(q K_aᵀ / √h) V_a
"""

import functools
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from aligner_jax.errors import InputError
from aligner_jax.model import reference
from aligner_jax.model.kernels import flash
from aligner_jax.model.kernels.blocks import Unsupported, check_supported
from aligner_jax.model.logical import Axes, on_each_device

RESIDUAL = "attention_residual"
"""The name under which `jax.checkpoint` policies find what a backward pass of attention needs beside its inputs."""
IMPLEMENTATIONS = ("auto", "pallas", "pallas_interpret", "xla")


@flax.struct.dataclass
class Prefix:
    """Keys, values and gates of one layer's prefix, already projected; b is 1 (shared by all rows) or the batch.

    Attributes:
      k_bpkh: keys, not rotated. Unread when p is 1 and not `joint`: a softmax over one key is 1.
      v_bpkh: values.
      gate_bn: one number a query head, float32 or bfloat16. Not read when `joint`.
      joint: one softmax over prefix and text together, without gates (prefix tuning, arXiv 2101.00190).
    """

    k_bpkh: Float[Array, "b p k h"]
    v_bpkh: Float[Array, "b p k h"]
    gate_bn: Float[Array, "b n"]
    joint: bool = flax.struct.field(pytree_node=False, default=False)


def attend(
    q_btnh: Float[Array, "b t n h"],
    k_bskh: Float[Array, "b s k h"],
    v_bskh: Float[Array, "b s k h"],
    prefix: Prefix | None = None,
    *,
    segment_ids_bt: Int[Array, "b t"] | None = None,
    implementation: str = "auto",
) -> Float[Array, "b t n h"]:
    """Causal attention of a row to itself (s = t), plus the prefix. Queries and keys are already rotated.

    Args:
      segment_ids_bt: positions attend only to positions with the same number.
      implementation: "pallas" is the TPU kernel (`kernels.flash`) and "pallas_interpret" its simulation; "xla" is
        `reference`, on any platform and for any shape. "auto" is the kernel where the program is lowered for a TPU and
        the shapes suit it, and XLA elsewhere, with a backward pass that stores no weights. All but "xla" have
        gradients, but no forward-mode derivatives.

    Returns:
      The heads' outputs in q's dtype, before the output projection. Softmaxes are computed in float32.

    Raises:
      Unsupported: the kernel was asked for and cannot take these shapes; the message says why.
      InputError: shapes that do not fit together, or an unknown implementation.
    """
    if implementation not in IMPLEMENTATIONS:
        raise InputError(f"attention implementation {implementation!r} is not one of {', '.join(IMPLEMENTATIONS)}")
    _check(q_btnh, k_bskh, v_bskh, prefix)
    if implementation != "xla":
        try:
            check_supported(q_btnh, k_bskh, 0 if prefix is None else prefix.v_bpkh.shape[1])
            if prefix is not None and prefix.joint:
                raise Unsupported("the attention kernel has no joint softmax over prefix and text")
        except Unsupported:
            if implementation != "auto":
                raise
            implementation = "xla"
    if implementation == "xla":
        mask_bts = reference.causal_mask(q_btnh.shape[1], segment_ids_bt)
        return attend_masked(q_btnh, k_bskh.swapaxes(1, 2), v_bskh.swapaxes(1, 2), prefix, mask_bts=mask_bts)
    inputs = _Inputs(q_btnh, k_bskh, v_bskh, segment_ids_bt)
    if prefix is None:
        return _attend_on_each_device(inputs, implementation)
    gated_v_bpnh = gated_values(prefix, q_btnh.shape[2]).astype(q_btnh.dtype)
    if gated_v_bpnh.shape[1] == 1:
        return reference.add_everywhere(_attend_on_each_device(inputs, implementation), gated_v_bpnh)
    inputs = inputs._replace(prefix_k_bpkh=prefix.k_bpkh.astype(q_btnh.dtype), gated_v_bpnh=gated_v_bpnh)
    return _attend_on_each_device(inputs, implementation)


def attend_masked(
    q_btnh: Float[Array, "b t n h"],
    k_bksh: Float[Array, "b k s h"],
    v_bksh: Float[Array, "b k s h"],
    prefix: Prefix | None,
    *,
    mask_bts: Bool[Array, "#b t s"],
) -> Float[Array, "b t n h"]:
    """Attention with an explicit mask (True: may attend), plus the prefix, which every query sees.

    Keys and values come heads first, as a cache holds them.
    """
    if prefix is not None and prefix.joint:
        rows = (q_btnh.shape[0], *prefix.k_bpkh.shape[1:])
        k_bkph, v_bkph = (
            jnp.broadcast_to(x, rows).swapaxes(1, 2).astype(k_bksh.dtype) for x in (prefix.k_bpkh, prefix.v_bpkh)
        )
        k_bksh, v_bksh = jnp.concatenate([k_bkph, k_bksh], axis=2), jnp.concatenate([v_bkph, v_bksh], axis=2)
        mask_bts = jnp.pad(mask_bts, [(0, 0), (0, 0), (rows[1], 0)], constant_values=True)
        prefix = None
    o_btnh, _ = reference.attend_text(q_btnh, k_bksh, v_bksh, mask_bts)
    if prefix is None:
        return o_btnh
    gated_v_bpnh = gated_values(prefix, q_btnh.shape[2])
    if gated_v_bpnh.shape[1] == 1:
        return o_btnh + gated_v_bpnh.astype(q_btnh.dtype)
    return o_btnh + reference.attend_prefix(q_btnh, prefix.k_bpkh, gated_v_bpnh)


def gated_values(prefix: Prefix, num_heads: int) -> Float[Array, "b p n h"]:
    """The prefix's values for each query head, times the head's gate, in float32.

    With one token that is all the prefix adds, at every position: a softmax over one key is 1.
    """
    v_bpnh = jnp.repeat(prefix.v_bpkh, num_heads // prefix.v_bpkh.shape[2], axis=2).astype(jnp.float32)
    return v_bpnh * prefix.gate_bn[:, None, :, None].astype(jnp.float32)


class _Inputs(NamedTuple):
    q_btnh: Float[Array, "b t n h"]
    k_bskh: Float[Array, "b s k h"]
    v_bskh: Float[Array, "b s k h"]
    segment_ids_bt: Int[Array, "b t"] | None = None
    prefix_k_bpkh: Float[Array, "#b p k h"] | None = None
    gated_v_bpnh: Float[Array, "#b p n h"] | None = None


def _attend_on_each_device(inputs: _Inputs, implementation: str) -> Float[Array, "b t n h"]:
    def axes(x: Array | None, heads: str) -> Axes | None:
        return None if x is None else (None if x.shape[0] == 1 else "batch", None, heads, None)

    in_axes = inputs._replace(
        q_btnh=("batch", None, "heads", None),
        k_bskh=("batch", None, "kv_heads", None),
        v_bskh=("batch", None, "kv_heads", None),
        segment_ids_bt=None if inputs.segment_ids_bt is None else ("batch", None),
        prefix_k_bpkh=axes(inputs.prefix_k_bpkh, "kv_heads"),
        gated_v_bpnh=axes(inputs.gated_v_bpnh, "heads"),
    )
    attention = functools.partial(_attend, implementation=implementation)
    return on_each_device(attention, (in_axes,), ("batch", None, "heads", None))(inputs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _attend(inputs: _Inputs, implementation: str) -> Float[Array, "b t n h"]:
    return _run(inputs, implementation, residuals=False)[0]


def _forward(inputs: _Inputs, implementation: str):
    o_btnh, *residuals = _run(inputs, implementation, residuals=True)
    return o_btnh, (inputs, *(checkpoint_name(x, RESIDUAL) for x in residuals))


def _run(inputs: _Inputs, implementation: str, residuals: bool):
    """The output, the text's part of it, and the logarithms of the denominators; the last two None if not wanted."""

    def pallas(inputs: _Inputs, interpret: bool = False):
        return flash.forward(**inputs._asdict(), residuals=residuals, interpret=interpret)

    def xla(inputs: _Inputs):
        q_btnh = inputs.q_btnh
        text_o_btnh, log_bnt = reference.attend_causally(*inputs[:3], inputs.segment_ids_bt)
        o_btnh = text_o_btnh
        if inputs.prefix_k_bpkh is not None and inputs.gated_v_bpnh is not None:
            o_btnh = text_o_btnh + reference.attend_prefix(q_btnh, inputs.prefix_k_bpkh, inputs.gated_v_bpnh)
        return (o_btnh, text_o_btnh, log_bnt) if residuals else (o_btnh, None, None)

    return _on_platform(implementation, pallas, xla, inputs)


def _backward(implementation: str, residuals, do_btnh):
    def pallas(inputs: _Inputs, text_o_btnh, log_bnt, do_btnh, interpret: bool = False):
        return flash.backward(text_o_btnh, log_bnt, do_btnh, **inputs._asdict(), interpret=interpret)

    def xla(inputs: _Inputs, text_o_btnh, log_bnt, do_btnh):
        d_text = reference.attend_causally_backward(*inputs[:3], inputs.segment_ids_bt, text_o_btnh, log_bnt, do_btnh)
        if inputs.prefix_k_bpkh is None:
            return *d_text, None, None
        _, pull = jax.vjp(reference.attend_prefix, inputs.q_btnh, inputs.prefix_k_bpkh, inputs.gated_v_bpnh)
        dq_btnh, d_prefix_k_bpkh, d_gated_v_bpnh = pull(do_btnh)
        return d_text[0] + dq_btnh, *d_text[1:], d_prefix_k_bpkh, d_gated_v_bpnh

    dq, dk, dv, d_prefix_k, d_gated_v = _on_platform(implementation, pallas, xla, *residuals, do_btnh)
    return (_Inputs(dq, dk, dv, None, d_prefix_k, d_gated_v),)


_attend.defvjp(_forward, _backward)


def _on_platform(implementation: str, pallas, xla, *arguments):
    # The platform is that of the lowering, also where a CPU compiles for a TPU.
    if implementation == "auto":
        return jax.lax.platform_dependent(*arguments, tpu=pallas, default=xla)
    return pallas(*arguments, interpret=implementation == "pallas_interpret")


def _check(q_btnh, k_bskh, v_bskh, prefix: Prefix | None):
    b, t, n, h = q_btnh.shape
    k = k_bskh.shape[2]
    if k_bskh.shape != (b, t, k, h) or v_bskh.shape != k_bskh.shape or n % k:
        raise InputError(f"queries {q_btnh.shape}, keys {k_bskh.shape} and values {v_bskh.shape} do not fit together")
    if prefix is None:
        return
    rows, p = prefix.v_bpkh.shape[:2]
    fits = prefix.v_bpkh.shape == (rows, p, k, h) and prefix.k_bpkh.shape == (rows, p, k, h)
    if not fits or prefix.gate_bn.shape != (rows, n) or rows not in (1, b):
        raise InputError(
            f"prefix keys {prefix.k_bpkh.shape}, values {prefix.v_bpkh.shape} and gates {prefix.gate_bn.shape} "
            f"do not fit queries {q_btnh.shape} and keys {k_bskh.shape}"
        )

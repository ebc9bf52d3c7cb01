"""Causal attention with a gated prefix (shape legend: llama.py).

The text attends to itself as in any LLaMA. Each query also attends to p prefix tokens, in a separate softmax, and a
gate per head scales the prefix's output (arXiv 2312.05503, section 3; arXiv 2303.16199, equations 6 to 9):

    o = softmax(q kᵀ / √h + causal) v  +  gate ⊙ softmax(q K_aᵀ / √h) V_a
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from aligner_jax.errors import InputError
from aligner_jax.model.kernels import cudnn, flash, triton, xla
from aligner_jax.model.kernels.kernel import Inputs, Kernel, Outputs
from aligner_jax.model.kernels.trusted import trusted
from aligner_jax.model.logical import Axes, is_split, num_parts, on_each_device
from aligner_jax.model.row_prefix import RowPrefix, attend_row_prefix

RESIDUAL = "attention_residual"
"""Checkpoint name of attention's residuals, for the policies of `jax.checkpoint`."""
_NAMED: dict[str, Kernel] = {
    "pallas": flash.kernel(),
    "pallas_interpret": flash.kernel(interpret=True),
    "cudnn": cudnn.kernel(),
    "triton": triton.kernel(),
    "triton_interpret": triton.kernel(interpret=True),
}
IMPLEMENTATIONS = ("auto", *_NAMED, "xla")


class Order(NamedTuple):
    """Names of a platform's kernels, the preferred one first, for rows of one document and for packed rows."""

    unpacked: tuple[str, ...]
    packed: tuple[str, ...]


KERNELS: dict[str, Order] = {
    "tpu": Order(unpacked=("pallas",), packed=("pallas",)),
    # For packed rows cuDNN takes a mask, and computes pairs of different documents too; Triton's skips their blocks.
    "cuda": Order(unpacked=("cudnn", "triton"), packed=("triton", "cudnn")),
}
"""Kernels by lowering platform. `xla.KERNEL` serves other platforms, and inputs that none of the kernels supports."""
CHECKED = ("cuda",)
"""Platforms whose kernels are compared with XLA's attention on the device at hand (`kernels.trusted`)."""


@flax.struct.dataclass
class Prefix:
    """Keys, values and gates of one layer's prefix, already projected; b is 1 (shared by all rows) or the batch.

    Attributes:
      k_bpkh: keys, not rotated. Not read if p is 1, unless `joint`: a softmax over one key is 1.
      v_bpkh: values of m heads: the k kv heads, or, if p is 1 and not `joint`, the n query heads instead.
      gate_bn: one gate per query head, float32 or bfloat16. Not read if `joint`.
      joint: True for one softmax over prefix and text together, without gates (prefix tuning, arXiv 2101.00190).
    """

    k_bpkh: Float[Array, "b p k h"]
    v_bpkh: Float[Array, "b p m h"]
    gate_bn: Float[Array, "b n"]
    joint: bool = flax.struct.field(pytree_node=False, default=False)


def attend(
    q_btnh: Float[Array, "b t n h"],
    k_bskh: Float[Array, "b s k h"],
    v_bskh: Float[Array, "b s k h"],
    prefix: Prefix | Sequence[Prefix | RowPrefix] | None = None,
    *,
    segment_ids_bt: Int[Array, "b t"] | None = None,
    implementation: str = "auto",
) -> Float[Array, "b t n h"]:
    """Computes causal self-attention of each row (s = t), plus the prefix or prefixes.

    Args:
      q_btnh, k_bskh: queries and keys, already rotated.
      v_bskh: values.
      prefix: optional prefix, which every query attends to; or several, whose outputs are summed. Each has a softmax
        of its own, and at most one is joint.
      segment_ids_bt: positions attend only to positions with the same segment id.
      implementation: "auto" selects the first of the platform's kernels (`KERNELS`) that supports the inputs, and
        `kernels.xla` otherwise; none stores attention weights for the backward pass. On an NVIDIA card it selects only
        kernels that agreed with XLA's attention on that card (`kernels.trusted`). "pallas" is the TPU kernel
        (`kernels.flash`); "cudnn" (`kernels.cudnn`) and "triton" (`kernels.triton`) are GPU kernels, and are not
        compared if they are named; "pallas_interpret" and "triton_interpret" simulate kernels. "xla" is differentiated
        by JAX: it stores the attention weights, and is the only one with forward-mode derivatives.

    Returns:
      The heads' outputs in q's dtype, before the output projection. Softmaxes are computed in float32.

    Raises:
      Unsupported: the named kernel does not support these inputs; the message says why.
      InputError: the shapes do not fit together, two prefixes are joint, or the implementation is unknown.
    """
    if implementation not in IMPLEMENTATIONS:
        raise InputError(f"attention implementation {implementation!r} is not one of {', '.join(IMPLEMENTATIONS)}")
    prefixes = as_prefixes(prefix)
    _check(q_btnh, k_bskh, v_bskh, prefixes)
    if implementation == "xla":
        mask_bts = xla.causal_mask(q_btnh.shape[1], segment_ids_bt)
        return attend_masked(q_btnh, k_bskh.swapaxes(1, 2), v_bskh.swapaxes(1, 2), prefixes, mask_bts=mask_bts)
    inputs, joint = Inputs(q_btnh, k_bskh, v_bskh, segment_ids_bt), joint_prefix(prefixes)
    if joint is not None:
        k_bskh, v_bskh = _joined(joint.k_bpkh, k_bskh, axis=1), _joined(joint.v_bpkh, v_bskh, axis=1)
        inputs = inputs._replace(k_bskh=k_bskh, v_bskh=v_bskh)
    gated = gated_prefixes(prefixes, q_btnh.shape[2], q_btnh.dtype)
    terms = [(k_bpkh.astype(q_btnh.dtype), gated_v_bpnh.astype(q_btnh.dtype)) for k_bpkh, gated_v_bpnh in gated.terms]
    if terms and joint is None:
        # A kernel takes one prefix, and computes it together with the text.
        (prefix_k_bpkh, gated_v_bpnh), *terms = terms
        inputs = inputs._replace(prefix_k_bpkh=prefix_k_bpkh, gated_v_bpnh=gated_v_bpnh)
    o_btnh = _attend_on_each_device(inputs, implementation)
    if gated.constant_b1nh is not None:
        o_btnh = xla.add_everywhere(o_btnh, gated.constant_b1nh)
    for term in terms:
        o_btnh += xla.attend_prefix(q_btnh, *term)
    for row_prefix in gated.of_rows:
        o_btnh += attend_row_prefix(q_btnh, row_prefix)
    return o_btnh


def attend_masked(
    q_btnh: Float[Array, "b t n h"],
    k_bksh: Float[Array, "b k s h"],
    v_bksh: Float[Array, "b k s h"],
    prefixes: Sequence[Prefix | RowPrefix],
    *,
    mask_bts: Bool[Array, "#b t s"],
) -> Float[Array, "b t n h"]:
    """Computes attention with an explicit mask, plus the prefixes, which every query attends to.

    Args:
      q_btnh: queries, already rotated.
      k_bksh, v_bksh: keys (already rotated) and values; heads come before positions, as in a cache.
      prefixes: any number of prefixes, of which at most one is joint.
      mask_bts: True where query t may attend to key s.

    Returns:
      The heads' outputs in q's dtype, before the output projection.
    """
    joint = joint_prefix(prefixes)
    if joint is not None:
        k_bksh = _joined(joint.k_bpkh.swapaxes(1, 2), k_bksh, axis=2)
        v_bksh = _joined(joint.v_bpkh.swapaxes(1, 2), v_bksh, axis=2)
        mask_bts = jnp.pad(mask_bts, [(0, 0), (0, 0), (joint.k_bpkh.shape[1], 0)], constant_values=True)
    o_btnh, _ = xla.attend_text(q_btnh, k_bksh, v_bksh, mask_bts)
    return add_gated(o_btnh, q_btnh, prefixes)


def add_gated(
    o_btnh: Float[Array, "b t n h"], q_btnh: Float[Array, "b t n h"], prefixes: Sequence[Prefix | RowPrefix]
) -> Float[Array, "b t n h"]:
    """Adds the outputs of the prefixes that are not joint to the heads' outputs, in XLA's operations."""
    gated = gated_prefixes(prefixes, q_btnh.shape[2], q_btnh.dtype)
    if gated.constant_b1nh is not None:
        o_btnh += gated.constant_b1nh
    for k_bpkh, gated_v_bpnh in gated.terms:
        o_btnh += xla.attend_prefix(q_btnh, k_bpkh, gated_v_bpnh)
    for row_prefix in gated.of_rows:
        o_btnh += attend_row_prefix(q_btnh, row_prefix)
    return o_btnh


def as_prefixes(prefix: Prefix | Sequence[Prefix | RowPrefix] | None) -> tuple[Prefix | RowPrefix, ...]:
    """Returns none, one or several prefixes as a tuple."""
    if prefix is None:
        return ()
    return (prefix,) if isinstance(prefix, Prefix) else tuple(prefix)


def joint_prefix(prefixes: Sequence[Prefix | RowPrefix]) -> Prefix | None:
    """Returns the joint prefix; None if there is none.

    Raises:
      InputError: there are several.
    """
    joint = [prefix for prefix in prefixes if isinstance(prefix, Prefix) and prefix.joint]
    if len(joint) > 1:
        raise InputError(
            f"{len(joint)} adapters have prefixes that share the text's softmax in one layer (prompt or prefix tuning):"
            " apply one of them only"
        )
    return next(iter(joint), None)


class Gated(NamedTuple):
    """The prefixes of one layer that have a softmax of their own.

    Attributes:
      constant_b1nh: sum over the prefixes of one token, which add the same at every position; None without any.
      terms: keys, and values multiplied by the gates in float32, of every prefix of several tokens.
      of_rows: tokens of the rows' own prefixes.
    """

    constant_b1nh: Float[Array, "#b 1 n h"] | None
    terms: list[tuple[Float[Array, "#b p k h"], Float[Array, "#b p n h"]]]
    of_rows: list[RowPrefix]


def gated_prefixes(prefixes: Sequence[Prefix | RowPrefix], num_heads: int, dtype: jnp.dtype) -> Gated:
    """Returns the prefixes that are not joint; their constant has the given dtype."""
    constants, terms, of_rows = [], [], []
    for prefix in prefixes:
        if isinstance(prefix, RowPrefix):
            constants.append(prefix.constant_bnh[:, None])
            of_rows += [] if prefix.k_bpkh is None else [prefix]
        elif not prefix.joint:
            gated_v_bpnh = gated_values(prefix, num_heads)
            if gated_v_bpnh.shape[1] == 1:
                constants.append(gated_v_bpnh)
            else:
                terms.append((prefix.k_bpkh, gated_v_bpnh))
    return Gated(functools.reduce(jnp.add, constants).astype(dtype) if constants else None, terms, of_rows)


def gated_values(prefix: Prefix, num_heads: int) -> Float[Array, "b p n h"]:
    """Returns the prefix's values for each query head, multiplied by the head's gate, in float32.

    If p is 1, these are the prefix's output at every position: a softmax over one key is 1.
    """
    v_bpnh = jnp.repeat(prefix.v_bpkh, num_heads // prefix.v_bpkh.shape[2], axis=2).astype(jnp.float32)
    return v_bpnh * prefix.gate_bn[:, None, :, None].astype(jnp.float32)


def _joined(prefix: Array, text: Array, axis: int) -> Array:
    """Prepends the prefix's keys or values to those of each row's text."""
    rows = jnp.broadcast_to(prefix, (len(text), *prefix.shape[1:]))
    return jnp.concatenate([rows.astype(text.dtype), text], axis=axis)


def _attend_on_each_device(inputs: Inputs, implementation: str) -> Float[Array, "b t n h"]:
    if is_split() and not _is_divided(inputs):
        # The compiler splits XLA's operations, and pads where a mesh does not divide an axis.
        return _attend(inputs, "xla" if implementation == "auto" else implementation)

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


def _is_divided(inputs: Inputs) -> bool:
    """Returns True if the mesh in context gives every device whole rows and whole groups of heads."""
    (b, _, n, _), k = inputs.q_btnh.shape, inputs.k_bskh.shape[2]
    sizes = {"batch": b, "heads": n, "kv_heads": k}
    divided = all(size % num_parts(axis) == 0 for axis, size in sizes.items())
    return divided and num_parts("heads") == num_parts("kv_heads")


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _attend(inputs: Inputs, implementation: str) -> Float[Array, "b t n h"]:
    return _run(inputs, implementation, residuals=False).o_btnh


def _forward(inputs: Inputs, implementation: str):
    o_btnh, *residuals = _run(inputs, implementation, residuals=True)
    return o_btnh, (inputs, *(checkpoint_name(x, RESIDUAL) for x in residuals))


def _run(inputs: Inputs, implementation: str, residuals: bool) -> Outputs:
    return _by_kernel(implementation, lambda kernel, inputs: kernel.forward(inputs, residuals), inputs)


def _backward(implementation: str, residuals, do_btnh):
    def run(kernel: Kernel, *residuals_and_do):
        return kernel.backward(*residuals_and_do)

    d = _by_kernel(implementation, run, *residuals, do_btnh)
    return (Inputs(d.q_btnh, d.k_bskh, d.v_bskh, None, d.prefix_k_bpkh, d.gated_v_bpnh),)


_attend.defvjp(_forward, _backward)


def _by_kernel[T](implementation: str, run: Callable[..., T], inputs: Inputs, *more: Array) -> T:
    """Calls `run` with the kernel of the lowering platform, which tracing does not know: a CPU may compile for TPUs."""
    if implementation in _NAMED:
        _NAMED[implementation].check_supported(inputs)
        return run(_NAMED[implementation], inputs, *more)
    found = {platform: _kernel(platform, inputs) for platform in KERNELS if implementation == "auto"}
    branches = {platform: functools.partial(run, kernel) for platform, kernel in found.items() if kernel is not None}
    default = functools.partial(run, xla.KERNEL)
    if not branches:
        return default(inputs, *more)
    return jax.lax.platform_dependent(inputs, *more, **branches, default=default)


def _kernel(platform: str, inputs: Inputs) -> Kernel | None:
    """Returns the first kernel of the platform that supports the inputs and computes them rightly; None if none does.

    Forward and backward pass have the same inputs, hence the same kernel.
    """
    order = KERNELS[platform].unpacked if inputs.segment_ids_bt is None else KERNELS[platform].packed
    for name in order:
        kernel = _NAMED[name]
        if kernel.supports(inputs) and (platform not in CHECKED or trusted(name, kernel, inputs)):
            return kernel
    return None


def _check(q_btnh, k_bskh, v_bskh, prefixes: Sequence[Prefix | RowPrefix]):
    b, t, n, h = q_btnh.shape
    k = k_bskh.shape[2]
    if k_bskh.shape != (b, t, k, h) or v_bskh.shape != k_bskh.shape or n % k:
        raise InputError(f"queries {q_btnh.shape}, keys {k_bskh.shape} and values {v_bskh.shape} do not fit together")
    for prefix in prefixes:
        if isinstance(prefix, RowPrefix):
            continue
        rows, p = prefix.v_bpkh.shape[:2]
        heads = n if p == 1 and not prefix.joint and prefix.v_bpkh.shape[2] == n else k
        fits = prefix.v_bpkh.shape == (rows, p, heads, h) and prefix.k_bpkh.shape == (rows, p, k, h)
        if not fits or prefix.gate_bn.shape != (rows, n) or rows not in (1, b):
            raise InputError(
                f"prefix keys {prefix.k_bpkh.shape}, values {prefix.v_bpkh.shape} and gates {prefix.gate_bn.shape} "
                f"do not fit queries {q_btnh.shape} and keys {k_bskh.shape}"
            )

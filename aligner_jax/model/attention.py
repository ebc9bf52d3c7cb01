"""Causal attention with a gated prefix: the one place where an adapter meets the model (shape legend: llama.py).

The text attends to itself as in any LLaMA; beside that, and in a softmax of its own, each query attends to p prefix
tokens, and a gate per head weighs what they give (arXiv 2312.05503, section 3; arXiv 2303.16199, equations 6 to 9):

    o = softmax(q kᵀ / √h + causal) v  +  gate ⊙ softmax(q K_aᵀ / √h) V_a
"""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from aligner_jax.errors import InputError

MAX_BLOCK_DIAGONAL_TOKENS = 16
"""Up to this many shared prefix tokens, one dense product over all heads is faster than a product per head."""


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
      implementation: "xla", or "auto" for the best there is.

    Returns:
      The heads' outputs in q's dtype, before the output projection. Softmaxes are computed in float32.

    Raises:
      InputError: shapes that do not fit together, or an unknown implementation.
    """
    if implementation not in ("auto", "xla"):
        raise InputError(f"attention implementation {implementation!r} is not one of auto, xla")
    _check(q_btnh, k_bskh, v_bskh, prefix)
    positions_t = jnp.arange(q_btnh.shape[1])
    mask_bts = (positions_t[:, None] >= positions_t[None, :])[None]
    if segment_ids_bt is not None:
        mask_bts = mask_bts & (segment_ids_bt[:, :, None] == segment_ids_bt[:, None, :])
    return attend_masked(q_btnh, k_bskh, v_bskh, prefix, mask_bts=mask_bts)


def attend_masked(
    q_btnh: Float[Array, "b t n h"],
    k_bskh: Float[Array, "b s k h"],
    v_bskh: Float[Array, "b s k h"],
    prefix: Prefix | None,
    *,
    mask_bts: Bool[Array, "#b t s"],
) -> Float[Array, "b t n h"]:
    """Attention with an explicit mask (True: may attend), plus the prefix, which every query sees."""
    (b, t, n, h), k = q_btnh.shape, k_bskh.shape[2]
    # Heads first, and the queries of a group in one axis x = (g t): as plain batched products of matrices, forward and
    # backward take CPUs half the time.
    q_bkxh = _by_group(q_btnh, k).transpose(0, 2, 3, 1, 4).reshape(b, k, -1, h)
    k_bksh, v_bksh = _heads_first(k_bskh), _heads_first(v_bskh)
    if prefix is not None and prefix.joint:
        rows = (b, *prefix.k_bpkh.shape[1:])
        k_bkph, v_bkph = (_heads_first(jnp.broadcast_to(x, rows)) for x in (prefix.k_bpkh, prefix.v_bpkh))
        k_bksh = jnp.concatenate([k_bkph.astype(k_bksh.dtype), k_bksh], axis=2)
        v_bksh = jnp.concatenate([v_bkph.astype(v_bksh.dtype), v_bksh], axis=2)
        mask_bts = jnp.pad(mask_bts, [(0, 0), (0, 0), (k_bkph.shape[2], 0)], constant_values=True)
        prefix = None
    scores_bkxs = jnp.einsum("bkxh,bksh->bkxs", q_bkxh, k_bksh, preferred_element_type=jnp.float32) * h**-0.5
    scores_bkgts = scores_bkxs.reshape(b, k, n // k, t, -1)
    scores_bkgts = jnp.where(mask_bts[:, None, None], scores_bkgts, jnp.finfo(jnp.float32).min)
    weights_bkxs = jax.nn.softmax(scores_bkgts, axis=-1).reshape(scores_bkxs.shape).astype(v_bksh.dtype)
    o_bkxh = jnp.einsum("bkxs,bksh->bkxh", weights_bkxs, v_bksh)
    o_btnh = o_bkxh.reshape(b, k, n // k, t, h).transpose(0, 3, 1, 2, 4).reshape(q_btnh.shape)
    if prefix is None:
        return o_btnh
    return o_btnh + attend_prefix(q_btnh, prefix)


def attend_prefix(q_btnh: Float[Array, "b t n h"], prefix: Prefix) -> Float[Array, "#b #t n h"]:
    """The gated prefix term alone, in q's dtype: gate ⊙ softmax(q K_aᵀ / √h) V_a.

    With one token this is a constant of the layer, [b or 1, 1, n, h]. A few shared tokens are done for all heads at
    once, as products with block-diagonal keys and values: compilers do badly on a product per head whose inner size
    is p, and the wasted multiplications by zero are a few percent of the query projection's.
    """
    with jax.named_scope("prefix"):
        prefix_batch, num_tokens = prefix.v_bpkh.shape[:2]
        if num_tokens == 1:
            return _gated_values(prefix, q_btnh.shape[2])[:, :1].astype(q_btnh.dtype)
        if prefix_batch == 1 and num_tokens <= MAX_BLOCK_DIAGONAL_TOKENS:
            return _attend_prefix_block_diagonal(q_btnh, prefix)
        return attend_prefix_reference(q_btnh, prefix)


def attend_prefix_reference(q_btnh: Float[Array, "b t n h"], prefix: Prefix) -> Float[Array, "b t n h"]:
    """`attend_prefix` as the formula reads, for any p and any batch of prefixes."""
    q_btkgh = _by_group(q_btnh, prefix.k_bpkh.shape[2])
    k_bpkh, v_bpkh = (jnp.broadcast_to(x, (q_btnh.shape[0], *x.shape[1:])) for x in (prefix.k_bpkh, prefix.v_bpkh))
    scores_bkgtp = jnp.einsum("btkgh,bpkh->bkgtp", q_btkgh, k_bpkh, preferred_element_type=jnp.float32)
    weights_bkgtp = jax.nn.softmax(scores_bkgtp * q_btnh.shape[-1] ** -0.5, axis=-1).astype(v_bpkh.dtype)
    o_btkgh = jnp.einsum("bkgtp,bpkh->btkgh", weights_bkgtp, v_bpkh, preferred_element_type=jnp.float32)
    gated_btnh = o_btkgh.reshape(q_btnh.shape) * prefix.gate_bn[:, None, :, None].astype(jnp.float32)
    return gated_btnh.astype(q_btnh.dtype)


def _attend_prefix_block_diagonal(q_btnh, prefix: Prefix):
    b, t, n, h = q_btnh.shape
    p = prefix.k_bpkh.shape[1]
    eye_nn = jnp.eye(n, dtype=jnp.float32)
    k_pnh = jnp.repeat(prefix.k_bpkh[0], n // prefix.k_bpkh.shape[2], axis=1).astype(jnp.float32) * h**-0.5
    keys = jnp.einsum("pnh,nm->nhmp", k_pnh, eye_nn).reshape(n * h, n * p).astype(q_btnh.dtype)
    values = jnp.einsum("pnh,nm->mpnh", _gated_values(prefix, n)[0], eye_nn).reshape(n * p, n * h).astype(q_btnh.dtype)
    scores = jnp.dot(q_btnh.reshape(b * t, n * h), keys, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scores.reshape(b * t, n, p), axis=-1).astype(q_btnh.dtype)
    return jnp.dot(weights.reshape(b * t, n * p), values).reshape(q_btnh.shape)


def _gated_values(prefix: Prefix, num_heads: int) -> Float[Array, "b p n h"]:
    v_bpnh = jnp.repeat(prefix.v_bpkh, num_heads // prefix.v_bpkh.shape[2], axis=2).astype(jnp.float32)
    return v_bpnh * prefix.gate_bn[:, None, :, None].astype(jnp.float32)


def _heads_first(x_bskh):
    return x_bskh.transpose(0, 2, 1, 3)


def _by_group(q_btnh, num_kv_heads: int):
    b, t, n, h = q_btnh.shape
    return q_btnh.reshape(b, t, num_kv_heads, n // num_kv_heads, h)


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

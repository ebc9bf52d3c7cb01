"""Attention in XLA's operations, for every platform and shape (shape legend: llama.py).

The backward pass recomputes the attention weights, so that no residual has size t · s.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from aligner_jax.model.kernels.kernel import Gradients, Inputs, Kernel, Outputs

MAX_BLOCK_DIAGONAL_TOKENS = 16
"""Most shared prefix tokens for which one dense product over all heads is faster than a product per head."""


MIN_BLOCK = 128
"""Fewest queries per block when a row is split into blocks, so that products stay large."""

_MASKED = jnp.finfo(jnp.float32).min


def causal_mask(length: int, segment_ids_bt: Int[Array, "b t"] | None, before: int = 0) -> Bool[Array, "#b t s"]:
    """Returns a mask that is True where query t may attend to key s: s ≤ t, and both in the same segment.

    Args:
      length: length of the rows.
      segment_ids_bt: segment ids; None if rows are not packed.
      before: number of keys before the text's, which every query attends to.
    """
    positions_t = jnp.arange(length)
    mask_bts = (positions_t[:, None] >= positions_t[None, :])[None]
    if segment_ids_bt is not None:
        mask_bts = mask_bts & (segment_ids_bt[:, :, None] == segment_ids_bt[:, None, :])
    return jnp.pad(mask_bts, ((0, 0), (0, 0), (before, 0)), constant_values=True)


def attend_text(
    q_btnh: Float[Array, "b t n h"],
    k_bksh: Float[Array, "b k s h"],
    v_bksh: Float[Array, "b k s h"],
    mask_bts: Bool[Array, "#b t s"],
) -> tuple[Float[Array, "b t n h"], Float[Array, "b n t"]]:
    """Returns attention with an explicit mask (True: may attend), and the log-denominators of its softmax, float32."""
    (b, t, n, _), k = q_btnh.shape, k_bksh.shape[1]
    scores_bkgts = _masked_scores(_by_kv_head(q_btnh, k), k_bksh, mask_bts)
    largest_bkgt = jnp.max(scores_bkgts, axis=-1, keepdims=True)
    powers_bkgts = jnp.exp(scores_bkgts - largest_bkgt)
    denominator_bkgt = jnp.sum(powers_bkgts, axis=-1, keepdims=True)
    weights_bkxs = (powers_bkgts / denominator_bkgt).reshape(b, k, -1, k_bksh.shape[2]).astype(v_bksh.dtype)
    o_bkxh = jnp.einsum("bkxs,bksh->bkxh", weights_bkxs, v_bksh)
    return _from_kv_heads(o_bkxh, q_btnh.shape), (largest_bkgt + jnp.log(denominator_bkgt)).reshape(b, n, t)


def attend_text_backward(
    q_btnh: Float[Array, "b t n h"],
    k_bksh: Float[Array, "b k s h"],
    v_bksh: Float[Array, "b k s h"],
    mask_bts: Bool[Array, "#b t s"],
    log_bnt: Float[Array, "b n t"],
    delta_bnt: Float[Array, "b n t"],
    do_btnh: Float[Array, "b t n h"],
) -> tuple[Float[Array, "b t n h"], Float[Array, "b k s h"], Float[Array, "b k s h"]]:
    """Returns the gradients of queries, keys and values; those of keys and values are float32.

    Args:
      q_btnh, k_bksh, v_bksh, mask_bts: inputs of `attend_text`.
      log_bnt: log-denominators that `attend_text` returned.
      delta_bnt: Σ_h o · do in float32, where o is the output of `attend_text`.
      do_btnh: cotangent of that output.
    """
    # XLA's CPU backend takes five times as long for a product over the first axis of its left operand. So scores are
    # transposed (keys before queries), and so are the keys of dq's product; barriers keep XLA from undoing that.
    k, scale = k_bksh.shape[1], q_btnh.shape[-1] ** -0.5
    q_bkxh, do_bkxh = _by_kv_head(q_btnh, k), _by_kv_head(do_btnh, k)
    statistic_bk1x = (*q_bkxh.shape[:2], 1, q_bkxh.shape[2])
    scores_bksx = jnp.einsum("bksh,bkxh->bksx", k_bksh, q_bkxh, preferred_element_type=jnp.float32) * scale
    weights_bksx = jnp.exp(_masked_keys(scores_bksx, mask_bts) - log_bnt.reshape(statistic_bk1x))
    weights_bksx = weights_bksx.astype(q_btnh.dtype)
    d_weights_bksx = jnp.einsum("bksh,bkxh->bksx", v_bksh, do_bkxh, preferred_element_type=jnp.float32)
    d_scores_bksx = weights_bksx.astype(jnp.float32) * (d_weights_bksx - delta_bnt.reshape(statistic_bk1x)) * scale
    d_scores_bksx = d_scores_bksx.astype(q_btnh.dtype)
    dv_bksh = jnp.einsum("bksx,bkxh->bksh", weights_bksx, do_bkxh, preferred_element_type=jnp.float32)
    dk_bksh = jnp.einsum("bksx,bkxh->bksh", d_scores_bksx, q_bkxh, preferred_element_type=jnp.float32)
    k_bkhs = jax.lax.optimization_barrier(k_bksh.swapaxes(2, 3))
    dq_bkhx = jax.lax.optimization_barrier(jnp.einsum("bkhs,bksx->bkhx", k_bkhs, d_scores_bksx))
    return _from_kv_heads(dq_bkhx.swapaxes(2, 3), q_btnh.shape), dk_bksh, dv_bksh


def attend_causally(
    q_btnh: Float[Array, "b t n h"],
    k_bskh: Float[Array, "b s k h"],
    v_bskh: Float[Array, "b s k h"],
    segment_ids_bt: Int[Array, "b t"] | None,
) -> tuple[Float[Array, "b t n h"], Float[Array, "b n t"]]:
    """Computes causal self-attention in blocks of queries, and skips most of the masked pairs.

    Every query attends to the first s - t keys, which come before the row's own. Returns the same as `attend_text`.
    """
    t, before = q_btnh.shape[1], k_bskh.shape[1] - q_btnh.shape[1]
    mask_bts = causal_mask(t, segment_ids_bt, before)
    k_bksh, v_bksh = _heads_first(k_bskh), _heads_first(v_bskh)
    parts = [
        attend_text(q_btnh[:, rows], k_bksh[:, :, keys], v_bksh[:, :, keys], mask_bts[:, rows, keys])
        for rows, keys in _causal_blocks(t, before)
    ]
    return jnp.concatenate([o for o, _ in parts], axis=1), jnp.concatenate([log for _, log in parts], axis=2)


def attend_causally_backward(
    q_btnh: Float[Array, "b t n h"],
    k_bskh: Float[Array, "b s k h"],
    v_bskh: Float[Array, "b s k h"],
    segment_ids_bt: Int[Array, "b t"] | None,
    o_btnh: Float[Array, "b t n h"],
    log_bnt: Float[Array, "b n t"],
    do_btnh: Float[Array, "b t n h"],
) -> tuple[Float[Array, "b t n h"], Float[Array, "b s k h"], Float[Array, "b s k h"]]:
    """Returns the gradients of queries, keys and values, from the inputs and results of `attend_causally`."""
    t, before = q_btnh.shape[1], k_bskh.shape[1] - q_btnh.shape[1]
    mask_bts = causal_mask(t, segment_ids_bt, before)
    k_bksh, v_bksh = _heads_first(k_bskh), _heads_first(v_bskh)
    delta_bnt = jnp.einsum("btnh,btnh->bnt", o_btnh.astype(jnp.float32), do_btnh.astype(jnp.float32))
    parts, dk_bksh, dv_bksh = [], jnp.zeros(k_bksh.shape, jnp.float32), jnp.zeros(v_bksh.shape, jnp.float32)
    for rows, keys in _causal_blocks(t, before):
        inputs = q_btnh[:, rows], k_bksh[:, :, keys], v_bksh[:, :, keys], mask_bts[:, rows, keys]
        statistics = log_bnt[:, :, rows], delta_bnt[:, :, rows]
        dq_btnh, *d_block = attend_text_backward(*inputs, *statistics, do_btnh[:, rows])
        parts.append(dq_btnh)
        dk_bksh, dv_bksh = (d.at[:, :, keys].add(more) for d, more in zip((dk_bksh, dv_bksh), d_block, strict=True))
    dk_bskh, dv_bskh = (_heads_first(x).astype(k_bskh.dtype) for x in (dk_bksh, dv_bksh))
    return jnp.concatenate(parts, axis=1), dk_bskh, dv_bskh


def _causal_blocks(length: int, before: int) -> list[tuple[slice, slice]]:
    """Returns blocks of queries, and the keys that they may see. Four blocks compute 5/8 of all pairs."""
    num_blocks = next(n for n in (4, 3, 2, 1) if length % n == 0 and (length // n >= MIN_BLOCK or n == 1))
    ends = range(length // num_blocks, length + 1, length // num_blocks)
    return [(slice(end - length // num_blocks, end), slice(0, before + end)) for end in ends]


@jax.custom_vjp
def add_everywhere(o_btnh: Float[Array, "b t n h"], x_b1nh: Float[Array, "#b 1 n h"]) -> Float[Array, "b t n h"]:
    """Adds x at every position. The gradient of x is a product with ones, since CPUs are ten times slower at a sum."""
    return o_btnh + x_b1nh


def _add_everywhere_backward(shared: bool, do_btnh):
    ones_bt = jnp.ones(do_btnh.shape[:2], do_btnh.dtype)
    into = "nh" if shared else "bnh"
    dx = jnp.einsum(f"bt,btnh->{into}", ones_bt, do_btnh, preferred_element_type=jnp.float32).astype(do_btnh.dtype)
    return do_btnh, dx[None, None] if shared else dx[:, None]


add_everywhere.defvjp(lambda o_btnh, x_b1nh: (o_btnh + x_b1nh, x_b1nh.shape[0] == 1), _add_everywhere_backward)


def attend_prefix(
    q_btnh: Float[Array, "b t n h"], k_bpkh: Float[Array, "#b p k h"], gated_v_bpnh: Float[Array, "#b p n h"]
) -> Float[Array, "b t n h"]:
    """Returns the gated prefix term softmax(q K_aᵀ / √h) (gate ⊙ V_a) in q's dtype.

    For a few shared tokens, all heads are computed at once, as products with block-diagonal keys and values. Compilers
    are slow at a product per head whose inner size is p, and the multiplications by zero cost only a few percent of the
    query projection.
    """
    with jax.named_scope("prefix"):
        if k_bpkh.shape[0] == 1 and k_bpkh.shape[1] <= MAX_BLOCK_DIAGONAL_TOKENS:
            return _attend_prefix_block_diagonal(q_btnh, k_bpkh, gated_v_bpnh)
        return attend_prefix_per_head(q_btnh, k_bpkh, gated_v_bpnh)


def attend_prefix_per_head(
    q_btnh: Float[Array, "b t n h"], k_bpkh: Float[Array, "#b p k h"], gated_v_bpnh: Float[Array, "#b p n h"]
) -> Float[Array, "b t n h"]:
    """Computes `attend_prefix` with a product per head, for any p and any batch of prefixes."""
    b, _, n, h = q_btnh.shape
    k_bpnh = jnp.repeat(k_bpkh, n // k_bpkh.shape[2], axis=2)
    k_bpnh, gated_v_bpnh = (jnp.broadcast_to(x, (b, *x.shape[1:])) for x in (k_bpnh, gated_v_bpnh))
    scores_bntp = jnp.einsum("btnh,bpnh->bntp", q_btnh, k_bpnh, preferred_element_type=jnp.float32)
    weights_bntp = jax.nn.softmax(scores_bntp * h**-0.5, axis=-1).astype(q_btnh.dtype)
    return jnp.einsum("bntp,bpnh->btnh", weights_bntp, gated_v_bpnh.astype(q_btnh.dtype))


def _attend_prefix_block_diagonal(q_btnh, k_bpkh, gated_v_bpnh):
    b, t, n, h = q_btnh.shape
    p = k_bpkh.shape[1]
    eye_nn = jnp.eye(n, dtype=jnp.float32)
    k_pnh = jnp.repeat(k_bpkh[0], n // k_bpkh.shape[2], axis=1).astype(jnp.float32) * h**-0.5
    keys = jnp.einsum("pnh,nm->nhmp", k_pnh, eye_nn).reshape(n * h, n * p).astype(q_btnh.dtype)
    values = jnp.einsum("pnh,nm->mpnh", gated_v_bpnh[0].astype(jnp.float32), eye_nn)
    values = values.reshape(n * p, n * h).astype(q_btnh.dtype)
    scores = jnp.dot(q_btnh.reshape(b * t, n * h), keys, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scores.reshape(b * t, n, p), axis=-1).astype(q_btnh.dtype)
    return jnp.dot(weights.reshape(b * t, n * p), values).reshape(q_btnh.shape)


def _masked_scores(q_bkxh, k_bksh, mask_bts):
    """Returns masked scores [b, k, g, t, s] in float32."""
    (b, k, _, h), t = q_bkxh.shape, mask_bts.shape[1]
    scores_bkxs = jnp.einsum("bkxh,bksh->bkxs", q_bkxh, k_bksh, preferred_element_type=jnp.float32) * h**-0.5
    scores_bkgts = scores_bkxs.reshape(b, k, -1, t, k_bksh.shape[2])
    return jnp.where(mask_bts[:, None, None], scores_bkgts, _MASKED)


def _masked_keys(scores_bksx, mask_bts):
    b, k, s, x = scores_bksx.shape
    scores_bksgt = scores_bksx.reshape(b, k, s, -1, mask_bts.shape[1])
    return jnp.where(mask_bts.swapaxes(1, 2)[:, None, :, None], scores_bksgt, _MASKED).reshape(b, k, s, x)


def _by_kv_head(q_btnh, num_kv_heads: int):
    # Heads come first, and the queries of a group share one axis x = (g t): CPUs take half the time for the plain
    # batched matrix products of this layout.
    b, t, n, h = q_btnh.shape
    q_btkgh = q_btnh.reshape(b, t, num_kv_heads, n // num_kv_heads, h)
    return q_btkgh.transpose(0, 2, 3, 1, 4).reshape(b, num_kv_heads, -1, h)


def _from_kv_heads(o_bkxh, shape):
    b, t, n, h = shape
    k = o_bkxh.shape[1]
    return o_bkxh.reshape(b, k, n // k, t, h).transpose(0, 3, 1, 2, 4).reshape(shape)


def _heads_first(x_bskh):
    return x_bskh.transpose(0, 2, 1, 3)


def with_gated_prefix(
    check_supported: Callable[[Inputs], None],
    forward: Callable[..., tuple[Array, Array]],
    backward: Callable[..., tuple[Array, Array, Array]],
) -> Kernel:
    """Returns a `Kernel` made of attention over the text alone; the gated prefix is added in XLA's operations.

    Args:
      check_supported: raises `Unsupported`, with the reason, if the functions do not support the inputs.
      forward: has the arguments and results of `attend_causally`.
      backward: has the arguments and results of `attend_causally_backward`.
    """

    def run_forward(inputs: Inputs, residuals: bool) -> Outputs:
        text_o_btnh, log_bnt = forward(*inputs[:3], inputs.segment_ids_bt)
        o_btnh = text_o_btnh
        if inputs.prefix_k_bpkh is not None and inputs.gated_v_bpnh is not None:
            o_btnh = text_o_btnh + attend_prefix(inputs.q_btnh, inputs.prefix_k_bpkh, inputs.gated_v_bpnh)
        return Outputs(o_btnh, text_o_btnh, log_bnt) if residuals else Outputs(o_btnh)

    def run_backward(inputs: Inputs, text_o_btnh: Array, log_bnt: Array, do_btnh: Array) -> Gradients:
        d_text = backward(*inputs[:3], inputs.segment_ids_bt, text_o_btnh, log_bnt, do_btnh)
        if inputs.prefix_k_bpkh is None:
            return Gradients(*d_text)
        _, pull = jax.vjp(attend_prefix, inputs.q_btnh, inputs.prefix_k_bpkh, inputs.gated_v_bpnh)
        dq_btnh, d_prefix_k_bpkh, d_gated_v_bpnh = pull(do_btnh)
        return Gradients(d_text[0] + dq_btnh, *d_text[1:], d_prefix_k_bpkh, d_gated_v_bpnh)

    return Kernel(check_supported, run_forward, run_backward)


KERNEL = with_gated_prefix(lambda inputs: None, attend_causally, attend_causally_backward)
"""Supports every shape and dtype."""

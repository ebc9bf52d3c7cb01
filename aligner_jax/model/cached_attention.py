"""Attention of new tokens to a cache and to each other (shape legend: llama.py)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from aligner_jax.model.attention import Prefix, add_gated, joint_prefix
from aligner_jax.model.kernels import xla
from aligner_jax.model.row_prefix import RowPrefix

type _Part = tuple[Float[Array, "b k s h"], Float[Array, "b k s h"], Bool[Array, "#b t s"] | None]

_MASKED = jnp.finfo(jnp.float32).min


def attend_cached(
    q_btnh: Float[Array, "b t n h"],
    k_bksh: Float[Array, "b k s h"],
    v_bksh: Float[Array, "b k s h"],
    new_k_bkth: Float[Array, "b k t h"],
    new_v_bkth: Float[Array, "b k t h"],
    prefixes: Sequence[Prefix | RowPrefix] = (),
    *,
    lengths_b: Int[Array, " b"],
) -> Float[Array, "b t n h"]:
    """Computes attention of t new tokens per row to the cache, to each other (causally), and to prefixes.

    The cache is neither written nor copied.

    Args:
      q_btnh: queries of the new tokens, already rotated.
      k_bksh, v_bksh: one layer of a cache. Row b attends to its slots s < lengths_b[b].
      new_k_bkth, new_v_bkth: keys (already rotated) and values of the new tokens.
      prefixes: prefixes, which every query attends to; at most one is joint.
      lengths_b: number of filled slots per row.

    Returns:
      The heads' outputs in q's dtype, before the output projection.
    """
    (b, t, _, _), slots = q_btnh.shape, k_bksh.shape[2]
    filled_b1s = jnp.arange(slots)[None, None] < lengths_b[:, None, None]
    parts: list[_Part] = [(k_bksh, v_bksh, filled_b1s), (new_k_bkth, new_v_bkth, xla.causal_mask(t, None))]
    joint = joint_prefix(prefixes)
    if joint is not None:
        parts.append((*_joint_keys_values(joint, b, k_bksh.dtype), None))
    return add_gated(_attend_parts(q_btnh, parts), q_btnh, prefixes)


def _attend_parts(
    q_btnh: Float[Array, "b t n h"],
    parts: Sequence[_Part],
) -> Float[Array, "b t n h"]:
    """Computes one softmax over the keys of all parts; a mask of None lets every query attend to the whole part."""
    (b, t, n, h), k = q_btnh.shape, parts[0][0].shape[1]
    q_bkxh = q_btnh.reshape(b, t, k, n // k, h).transpose(0, 2, 3, 1, 4).reshape(b, k, -1, h)

    def scores(k_bksh, mask_bts):
        scores_bkxs = jnp.einsum("bkxh,bksh->bkxs", q_bkxh, k_bksh, preferred_element_type=jnp.float32) * h**-0.5
        if mask_bts is None:
            return scores_bkxs
        scores_bkgts = scores_bkxs.reshape(b, k, n // k, t, -1)
        return jnp.where(mask_bts[:, None, None], scores_bkgts, _MASKED).reshape(scores_bkxs.shape)

    weights_bkxs = jax.nn.softmax(jnp.concatenate([scores(keys, mask) for keys, _, mask in parts], axis=-1), axis=-1)
    o_bkxh, start = jnp.zeros(q_bkxh.shape, jnp.float32), 0
    for _, v_bksh, _ in parts:
        stop = start + v_bksh.shape[2]
        weights = weights_bkxs[..., start:stop].astype(v_bksh.dtype)
        o_bkxh += jnp.einsum("bkxs,bksh->bkxh", weights, v_bksh, preferred_element_type=jnp.float32)
        start = stop
    return o_bkxh.reshape(b, k, n // k, t, h).transpose(0, 3, 1, 2, 4).reshape(q_btnh.shape).astype(q_btnh.dtype)


def _joint_keys_values(prefix: Prefix, rows: int, dtype) -> tuple[Float[Array, "b k p h"], Float[Array, "b k p h"]]:
    shape = (rows, *prefix.k_bpkh.shape[1:])
    k_bkph, v_bkph = (
        jnp.broadcast_to(x_bpkh, shape).swapaxes(1, 2).astype(dtype) for x_bpkh in (prefix.k_bpkh, prefix.v_bpkh)
    )
    return k_bkph, v_bkph

"""Arithmetic that the forward and the backward program share.

Scores are transposed: keys lie along sublanes (rows of a vector register), queries along lanes. This has four effects:
the softmax over keys is a reduction over registers; its statistics take one lane per query; a prefix of p tokens costs
p rows (padded to 16) and not 128 lanes; and no matrix as large as the scores is ever transposed.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from aligner_jax.model.kernels.blocks import LANES

LOG2_E = 1.4426950408889634
MASKED = -1e30
"""Score of a masked pair. Finite, so that the difference of two masked scores is defined."""


def dot(a: jax.Array, b: jax.Array, *, contract: tuple[int, int]) -> jax.Array:
    """Contracts one axis of a with one of b, summed in float32; float32 operands are multiplied in full precision."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    numbers = (((contract[0],), (contract[1],)), ((), ()))
    return lax.dot_general(a, b, numbers, precision=precision, preferred_element_type=jnp.float32)


matmul = functools.partial(dot, contract=(1, 0))
matmul_transposed = functools.partial(dot, contract=(1, 1))


def scores(k_sh: jax.Array, q_th: jax.Array) -> jax.Array:
    """Returns k qᵀ · log₂ e / √h, [s, t] in float32, for a softmax with powers of 2, which the hardware computes."""
    return matmul_transposed(k_sh, q_th) * (q_th.shape[1] ** -0.5 * LOG2_E)


def prefix_weights(k_ph: jax.Array, q_th: jax.Array, num_tokens: int) -> jax.Array:
    """Returns the softmax over the prefix's first `num_tokens` rows (the others are padding), [p, t] in float32."""
    scores_pt = scores(k_ph, q_th)
    if scores_pt.shape[0] > num_tokens:
        rows_pt = lax.broadcasted_iota(jnp.int32, scores_pt.shape, 0)
        scores_pt = jnp.where(rows_pt < num_tokens, scores_pt, MASKED)
    powers_pt = jnp.exp2(scores_pt - jnp.max(scores_pt, axis=0, keepdims=True))
    return powers_pt * (1 / jnp.sum(powers_pt, axis=0, keepdims=True))


def masked(x_st: jax.Array, other: float, segments: tuple[jax.Array, jax.Array] | None, *, causal: bool) -> jax.Array:
    """Returns x for pairs that may attend, `other` for masked pairs.

    Args:
      x_st: values of pairs of a key and a query.
      other: value of masked pairs.
      segments: segment ids of the keys [1, s] and of the queries [1, t]; None if rows are not packed.
      causal: True masks keys after the query; keys and queries then begin at the same position.
    """
    if segments is not None:
        segments_1s, segments_1t = segments
        x_st = jnp.where(_as_column(segments_1s, x_st.shape[1]) == segments_1t, x_st, other)
    if causal:
        s = x_st.shape[0]
        square = lax.broadcasted_iota(jnp.int32, (s, s), 0) <= lax.broadcasted_iota(jnp.int32, (s, s), 1)
        x_ss = jnp.where(square, x_st[:, :s], other)
        x_st = x_ss if x_st.shape[1] == s else jnp.concatenate([x_ss, x_st[:, s:]], axis=1)
    return x_st


def _as_column(row_1s: jax.Array, width: int) -> jax.Array:
    column = jnp.broadcast_to(row_1s, (LANES, row_1s.shape[1])).T
    return jnp.concatenate([column] * (width // LANES), axis=1)

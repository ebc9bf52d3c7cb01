"""Reference attention, written as the formula, that every kernel is tested against (shape legend: llama.py)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from aligner_jax.model.kernels.kernel import Inputs


def attend(inputs: Inputs) -> Float[Array, "b t n h"]:
    """Returns softmax(q kᵀ / √h + causal) v + softmax(q K_aᵀ / √h) (gate ⊙ V_a), each head on its own."""
    q, k, v, segments_bt, prefix_k, gated_v = inputs
    b, t, n, h = q.shape
    s, group, scale = k.shape[1], n // k.shape[2], h**-0.5
    seen_bts = jnp.tril(jnp.ones((t, t), bool))[None]
    if segments_bt is not None:
        seen_bts = seen_bts & (segments_bt[:, :, None] == segments_bt[:, None, :])
    seen_bts = jnp.pad(seen_bts, ((0, 0), (0, 0), (s - t, 0)), constant_values=True)
    scores_bnts = jnp.einsum("btnh,bsnh->bnts", q, jnp.repeat(k, group, 2)) * scale
    weights_bnts = jax.nn.softmax(jnp.where(seen_bts[:, None], scores_bnts, -jnp.inf))
    o_btnh = jnp.einsum("bnts,bsnh->btnh", weights_bnts, jnp.repeat(v, group, 2))
    if prefix_k is None or gated_v is None:
        return o_btnh
    k_bpnh, gated_v_bpnh = (jnp.broadcast_to(x, (b, *x.shape[1:])) for x in (jnp.repeat(prefix_k, group, 2), gated_v))
    weights_bntp = jax.nn.softmax(jnp.einsum("btnh,bpnh->bntp", q, k_bpnh) * scale)
    return o_btnh + jnp.einsum("bntp,bpnh->btnh", weights_bntp, gated_v_bpnh)

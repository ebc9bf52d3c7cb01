"""Prefixes of rows that each have adapters of their own, in shapes that do not depend on the adapters (llama.py)."""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

_MASKED = jnp.finfo(jnp.float32).min


@flax.struct.dataclass
class RowPrefix:
    """Sum of any number of gated prefixes per row, for one layer.

    Attributes:
      constant_bnh: sum of the outputs of the prefixes of one token, which are the same for every query.
      k_bpkh, v_bpkh: keys, not rotated, and values of the tokens of all longer prefixes; None if rows have room for
        prefixes of one token only.
      gate_bpn: gate of each token's prefix, float32; 0 for tokens that are not used.
      group_bp: index of each token's prefix. Tokens with the same index share a softmax.
    """

    constant_bnh: Float[Array, "b n h"]
    k_bpkh: Float[Array, "b p k h"] | None = None
    v_bpkh: Float[Array, "b p k h"] | None = None
    gate_bpn: Float[Array, "b p n"] | None = None
    group_bp: Int[Array, "b p"] | None = None


def attend_row_prefix(q_btnh: Float[Array, "b t n h"], prefix: RowPrefix) -> Float[Array, "b t n h"]:
    """Returns the sum over the prefixes of gate ⊙ softmax(q K_aᵀ / √h) V_a in q's dtype, for tokens with a softmax."""
    assert prefix.k_bpkh is not None
    assert prefix.v_bpkh is not None
    assert prefix.gate_bpn is not None
    assert prefix.group_bp is not None
    (b, t, n, h), (_, p, k, _) = q_btnh.shape, prefix.k_bpkh.shape
    with jax.named_scope("prefix"):
        q_btkgh = q_btnh.reshape(b, t, k, n // k, h)
        scores_btkgp = jnp.einsum("btkgh,bpkh->btkgp", q_btkgh, prefix.k_bpkh, preferred_element_type=jnp.float32)
        scores_btkgp *= h**-0.5
        same_bpx = prefix.group_bp[:, :, None] == prefix.group_bp[:, None, :]
        # Every softmax subtracts its own largest score: those of different prefixes may differ by any factor.
        of_group = jnp.where(same_bpx[:, None, None, None], scores_btkgp[..., None, :], _MASKED)
        powers_btkgp = jnp.exp(scores_btkgp - jnp.max(of_group, axis=-1))
        sums_btkgp = jnp.einsum("btkgx,bpx->btkgp", powers_btkgp, same_bpx.astype(jnp.float32))
        gate_bkgp = prefix.gate_bpn.reshape(b, p, k, n // k).transpose(0, 2, 3, 1)
        weights_btkgp = (powers_btkgp / sums_btkgp * gate_bkgp[:, None]).astype(q_btnh.dtype)
        return jnp.einsum("btkgp,bpkh->btkgh", weights_btkgp, prefix.v_bpkh.astype(q_btnh.dtype)).reshape(q_btnh.shape)

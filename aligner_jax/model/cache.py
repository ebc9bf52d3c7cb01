"""Decoding with a key-value cache: prefill a batch of left-padded prompts, then one token a row at a time."""

from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from aligner_jax.model.attention import attend_masked
from aligner_jax.model.layers import Adapted, Layer, layer_as_stored, run_layers
from aligner_jax.model.layout import as_stored
from aligner_jax.model.llama import LlamaConfig, Params, embed, rms_norm, transform
from aligner_jax.model.rope import rotation


@flax.struct.dataclass
class KVCache:
    """Rotated keys and values of every layer, `s` slots a row, filled from slot 0 at the same pace in all rows.

    Attributes:
      k_lbksh, v_lbksh: heads before slots, as the products of attention read them.
      valid_bs: False in slots that are empty or hold padding.
      used: slots filled so far.
      lengths_b: the position of each row's next token: real tokens so far, and the first position.
    """

    k_lbksh: Float[Array, "l b k s h"]
    v_lbksh: Float[Array, "l b k s h"]
    valid_bs: Bool[Array, "b s"]
    used: Int[Array, ""]
    lengths_b: Int[Array, " b"]

    def repeat_row(self, times: int) -> "KVCache":
        """The cache of a batch of so many copies of this one's only row."""
        k_lbksh, v_lbksh = (jnp.repeat(x, times, axis=1) for x in (self.k_lbksh, self.v_lbksh))
        valid_bs, lengths_b = (jnp.repeat(x, times, axis=0) for x in (self.valid_bs, self.lengths_b))
        return KVCache(k_lbksh, v_lbksh, valid_bs, self.used, lengths_b)


def empty_cache(
    config: LlamaConfig, batch_size: int, slots: int, dtype: jnp.dtype, *, first_position: int = 0
) -> KVCache:
    """A cache with nothing in it: 2 · l · b · slots · k · h numbers. first_position: of each row's first token."""
    shape = (config.num_layers, batch_size, config.num_kv_heads, slots, config.head_dim)
    return KVCache(
        k_lbksh=jnp.zeros(shape, dtype),
        v_lbksh=jnp.zeros(shape, dtype),
        valid_bs=jnp.zeros((batch_size, slots), bool),
        used=jnp.int32(0),
        lengths_b=jnp.full(batch_size, first_position, jnp.int32),
    )


def forward_cached(
    params: Params,
    tokens_bt: Int[Array, "b t"],
    cache: KVCache,
    *,
    config: LlamaConfig,
    adapted: Sequence[Adapted] = (),
    valid_bt: Bool[Array, "b t"] | None = None,
) -> tuple[Float[Array, "b t d"], KVCache]:
    """Hidden states (after the final norm) of new tokens that follow what the cache holds, and the longer cache.

    Args:
      tokens_bt: the next t tokens of every row: the prompts at first, then usually one.
      adapted: as in `llama.forward`.
      valid_bt: False for padding, which must come before a row's first real token; padding is never attended to.
    """
    b, t = tokens_bt.shape
    if valid_bt is None:
        valid_bt = jnp.ones((b, t), bool)
    positions_bt = jnp.maximum(cache.lengths_b[:, None] + jnp.cumsum(valid_bt, axis=1, dtype=jnp.int32) - 1, 0)
    valid_bs = jax.lax.dynamic_update_slice(cache.valid_bs, valid_bt, (0, cache.used))
    slots_s = jnp.arange(cache.valid_bs.shape[1])
    causal_ts = slots_s[None, :] <= (cache.used + jnp.arange(t))[:, None]
    mask_bts = causal_ts[None] & valid_bs[:, None, :]
    cos_sin = rotation(positions_bt, config)

    def step(carry, layer: Layer):
        x_btd, k_lbksh, v_lbksh = carry

        def attention(q_btnh, k_btkh, v_btkh):
            nonlocal k_lbksh, v_lbksh
            start = (layer.index, 0, 0, cache.used, 0)
            k_lbksh = jax.lax.dynamic_update_slice(k_lbksh, k_btkh.swapaxes(1, 2)[None], start)
            v_lbksh = jax.lax.dynamic_update_slice(v_lbksh, v_btkh.swapaxes(1, 2)[None], start)
            # Likewise the whole cache, before and after all steps.
            k_lbksh, v_lbksh = as_stored(k_lbksh), as_stored(v_lbksh)
            k_bksh, v_bksh = (jax.lax.dynamic_index_in_dim(x, layer.index, keepdims=False) for x in (k_lbksh, v_lbksh))
            return attend_masked(q_btnh, k_bksh, v_bksh, layer.prefix, mask_bts=mask_bts)

        x_btd = transform(x_btd, layer.updated(), attention, cos_sin=cos_sin, config=config)
        return (x_btd, k_lbksh, v_lbksh), None

    carry = (embed(params, tokens_bt), cache.k_lbksh, cache.v_lbksh)
    (x_btd, k_lbksh, v_lbksh), _ = run_layers(
        step, carry, params.layers, range(config.num_layers), adapted, read=layer_as_stored
    )
    new_cache = KVCache(
        k_lbksh=k_lbksh,
        v_lbksh=v_lbksh,
        valid_bs=valid_bs,
        used=cache.used + t,
        lengths_b=cache.lengths_b + jnp.sum(valid_bt, axis=1, dtype=jnp.int32),
    )
    return rms_norm(x_btd, params.norm_d, config.norm_eps), new_cache

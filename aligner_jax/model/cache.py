"""A key-value cache with a length per row: prefill of prompts, and decoding of the tokens that follow."""

import dataclasses
import functools
from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from aligner_jax.model.attention import attend
from aligner_jax.model.cached_attention import attend_cached, blocks_to_read
from aligner_jax.model.layers import Adapted, Layer, layer_as_stored, run_layers
from aligner_jax.model.layout import as_stored
from aligner_jax.model.llama import LlamaConfig, Params, embed, rms_norm, transform
from aligner_jax.model.logical import constrain, mesh_axes, num_parts, on_each_device, replicated
from aligner_jax.model.quantized import Quantized
from aligner_jax.model.rope import rotation

_AXES = (None, "batch", "kv_heads", None, None)


@flax.struct.dataclass
class KVCache:
    """Rotated keys, and values, of every layer; slot s of row b is valid if s < lengths_b[b].

    Attributes:
      k_lbksh, v_lbksh: keys and values; heads come before slots, the order in which attention reads them.
      lengths_b: number of filled slots per row.
      first_position: rotary position of slot 0.
    """

    k_lbksh: Float[Array, "l b k s h"]
    v_lbksh: Float[Array, "l b k s h"]
    lengths_b: Int[Array, " b"]
    first_position: int = flax.struct.field(pytree_node=False, default=0)

    @property
    def slots(self) -> int:
        """Number of slots per row."""
        return self.k_lbksh.shape[3]

    @property
    def positions_b(self) -> Int[Array, " b"]:
        """Rotary position of each row's next token."""
        return self.lengths_b + self.first_position


def empty_cache(
    config: LlamaConfig, batch_size: int, slots: int, dtype: jnp.dtype, *, first_position: int = 0
) -> KVCache:
    """Returns a cache of empty rows, with 2 · l · b · slots · k · h elements."""
    shape = (config.num_layers, batch_size, config.num_kv_heads, slots, config.head_dim)
    k_lbksh, v_lbksh = (constrain(jnp.zeros(shape, dtype), *_AXES) for _ in range(2))
    return KVCache(k_lbksh, v_lbksh, jnp.zeros(batch_size, jnp.int32), first_position)


def laid_out(cache: KVCache) -> KVCache:
    """Returns the cache with the sharding of `empty_cache`, so that programs take each other's results."""
    k_lbksh, v_lbksh = (constrain(x, *_AXES) for x in (cache.k_lbksh, cache.v_lbksh))
    return dataclasses.replace(cache, k_lbksh=k_lbksh, v_lbksh=v_lbksh, lengths_b=replicated(cache.lengths_b))


def prefill_cache(
    params: Params,
    tokens_bt: Int[Array, "b t"],
    lengths_b: Int[Array, " b"],
    *,
    config: LlamaConfig,
    slots: int,
    adapted: Sequence[Adapted] = (),
    first_position: int = 0,
) -> tuple[Float[Array, "b d"], KVCache]:
    """Returns the hidden state (after the final norm) of each prompt's last token, and the cache of the prompts.

    Args:
      tokens_bt: prompts, padded at their ends.
      lengths_b: lengths of the prompts, at least 1.
      slots: number of slots per row, at least t.
      adapted: prefixes and updates, each for a range of layers.
      first_position: rotary position of the prompts' first tokens.
    """
    b, t = tokens_bt.shape
    cos_sin = rotation(first_position + jnp.arange(t, dtype=jnp.int32)[None], config)

    def step(carry, layer: Layer):
        x_btd, k_lbksh, v_lbksh = carry

        def attention(q_btnh, k_btkh, v_btkh):
            nonlocal k_lbksh, v_lbksh
            start = (layer.index, 0, 0, 0, 0)
            k_lbksh = jax.lax.dynamic_update_slice(k_lbksh, k_btkh.swapaxes(1, 2)[None], start)
            v_lbksh = jax.lax.dynamic_update_slice(v_lbksh, _finite(v_btkh).swapaxes(1, 2)[None], start)
            # In another layout the compiler would copy the whole cache.
            k_lbksh, v_lbksh = as_stored(k_lbksh), as_stored(v_lbksh)
            # Causality masks the padding, which follows a row's tokens.
            return attend(q_btnh, k_btkh, v_btkh, layer.prefixes)

        x_btd = transform(x_btd, layer.updated(), attention, cos_sin=cos_sin, config=config)
        return (x_btd, k_lbksh, v_lbksh), None

    empty = empty_cache(config, b, slots, params.embed_vd.dtype)
    carry = (embed(params, tokens_bt), empty.k_lbksh, empty.v_lbksh)
    (x_btd, k_lbksh, v_lbksh), _ = run_layers(
        step,
        carry,
        params.layers,
        range(config.num_layers),
        adapted,
        read=functools.partial(layer_as_stored, config=config),
    )
    last_bd = jnp.take_along_axis(x_btd, (lengths_b - 1)[:, None, None], axis=1)[:, 0]
    cache = KVCache(k_lbksh, v_lbksh, lengths_b.astype(jnp.int32), first_position)
    return rms_norm(last_bd, params.norm_d, config.norm_eps), cache


def forward_cached(
    params: Params,
    tokens_bt: Int[Array, "b t"],
    cache: KVCache,
    *,
    config: LlamaConfig,
    adapted: Sequence[Adapted] = (),
) -> tuple[Float[Array, "b t d"], KVCache]:
    """Returns hidden states (after the final norm) of each row's next t tokens, and the cache with these tokens.

    Args:
      tokens_bt: next tokens of every row; usually t = 1. A row with fewer than t free slots overwrites its last ones.
      cache: cache of the preceding tokens.
      adapted: prefixes and updates, each for a range of layers.
    """
    t = tokens_bt.shape[1]
    positions_bt = cache.positions_b[:, None] + jnp.arange(t, dtype=jnp.int32)[None]
    cos_sin = rotation(positions_bt, config)
    blocks = blocks_to_read(cache.k_lbksh, cache.lengths_b) if t == 1 else None

    def step(x_btd, layer: Layer):
        new = None

        def attention(q_btnh, k_btkh, v_btkh):
            nonlocal new
            new_k_bkth, new_v_bkth = k_btkh.swapaxes(1, 2), v_btkh.swapaxes(1, 2)
            new = new_k_bkth, _finite(new_v_bkth)
            return attend_cached(
                q_btnh, cache.k_lbksh, cache.v_lbksh, new_k_bkth, new_v_bkth, layer.prefixes,
                lengths_b=cache.lengths_b, layer=layer.index, blocks=blocks,
            )  # fmt: skip

        return transform(x_btd, layer.updated(), attention, cos_sin=cos_sin, config=config), new

    x_btd, (new_k_lbkth, new_v_lbkth) = run_layers(
        step,
        embed(params, tokens_bt),
        params.layers,
        range(config.num_layers),
        adapted,
        read=functools.partial(layer_as_stored, config=config),
        # XLA's GPU compiler would dequantize the weights of all unrolled layers at once.
        unroll_on_gpu=not any(isinstance(leaf, Quantized) for leaf in vars(params.layers).values()),
    )
    new_cache = dataclasses.replace(
        cache,
        k_lbksh=_written(cache.k_lbksh, new_k_lbkth, cache.lengths_b),
        v_lbksh=_written(cache.v_lbksh, new_v_lbkth, cache.lengths_b),
        lengths_b=cache.lengths_b + t,
    )
    return rms_norm(x_btd, params.norm_d, config.norm_eps), new_cache


def _finite(v: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns values with 0 for those that are not finite.

    A row's slots outlive its request. Their keys are masked, but a weight of 0 times an infinite value would not be 0.
    """
    return jnp.where(jnp.isfinite(v), v, 0)


def _written(
    x_lbksh: Float[Array, "l b k s h"], new_lbkth: Float[Array, "l b k t h"], starts_b: Int[Array, " b"]
) -> Float[Array, "l b k s h"]:
    """Writes new slots into every row of the cache, in place, beginning at the row's own start."""

    def write(*arrays):
        # A GPU would launch a kernel for every row.
        return jax.lax.platform_dependent(*arrays, cuda=written_at_once, default=written_by_row)

    if x_lbksh.shape[1] % num_parts("batch"):
        return write(x_lbksh, new_lbkth, starts_b)
    return on_each_device(write, (_AXES, _AXES, ("batch",)), _AXES)(x_lbksh, new_lbkth, starts_b)


def written_by_row(
    x_lbksh: Float[Array, "l b k s h"], new_lbkth: Float[Array, "l b k t h"], starts_b: Int[Array, " b"]
) -> Float[Array, "l b k s h"]:
    """Writes new slots into the rows, one row after the other; starts are clamped to what fits."""

    def write_row(row, x_lbksh):
        new_l1kth = jax.lax.dynamic_slice_in_dim(new_lbkth, row, 1, axis=1)
        return as_stored(jax.lax.dynamic_update_slice(x_lbksh, new_l1kth, (0, row, 0, starts_b[row], 0)))

    return jax.lax.fori_loop(0, starts_b.shape[0], write_row, x_lbksh)


def written_at_once(
    x_lbksh: Float[Array, "l b k s h"], new_lbkth: Float[Array, "l b k t h"], starts_b: Int[Array, " b"]
) -> Float[Array, "l b k s h"]:
    """Writes new slots into all rows as a scatter along the first axis; XLA would transpose for any other."""
    l, b, k, s, h = x_lbksh.shape  # noqa: E741
    t = new_lbkth.shape[3]
    slots_bt = jnp.clip(starts_b, 0, s - t)[:, None] + jnp.arange(t)[None]
    rows_lbkt = jnp.arange(l * b * k).reshape(l, b, k, 1) * s + slots_bt[None, :, None]
    x_xh = x_lbksh.reshape(-1, h).at[rows_lbkt.reshape(-1)]
    written = x_xh.set(new_lbkth.reshape(-1, h), unique_indices=True, mode="promise_in_bounds")
    return written.reshape(x_lbksh.shape)


def insert_rows(
    x_lbksh: Float[Array, "l b k s h"], new_lbksh: Float[Array, "l rows k slots h"], rows_b: Int[Array, " rows"]
) -> Float[Array, "l b k s h"]:
    """Writes the first slots of rows of a cache, in place if it is donated.

    Args:
      x_lbksh: keys or values of the cache.
      new_lbksh: keys or values of the new rows, with at most as many slots.
      rows_b: index in the cache of each new row.
    """
    split, new_split = (x.shape[1] % num_parts("batch") == 0 for x in (x_lbksh, new_lbksh))
    axes = mesh_axes("batch") if split else ()

    def write(x_lbksh, new_lbksh, rows_b, layer):
        first = jax.lax.axis_index(axes) * x_lbksh.shape[1] if axes else 0

        def write_row(i, x_lbksh):
            new_l1ksh = jax.lax.dynamic_slice_in_dim(new_lbksh, i, 1, axis=1)
            row = rows_b[i] - first
            start = (layer, row, 0, 0, 0)
            if axes:
                # A row of another device: the slice is clamped, and keeps its values.
                held_l1ksh = jax.lax.dynamic_slice(x_lbksh, start, new_l1ksh.shape)
                new_l1ksh = jnp.where((row >= 0) & (row < x_lbksh.shape[1]), new_l1ksh, held_l1ksh)
            return as_stored(jax.lax.dynamic_update_slice(x_lbksh, new_l1ksh, start))

        return jax.lax.fori_loop(0, len(rows_b), write_row, x_lbksh)

    if not split:
        return write(x_lbksh, new_lbksh, rows_b, 0)
    # Each device gets all new rows: any row may move from the device that prefilled it to any other.
    write_all = on_each_device(write, (_AXES, (None, None, "kv_heads", None, None), (None,), ()), _AXES)
    if not (axes and new_split):
        return write_all(x_lbksh, new_lbksh, rows_b, 0)

    def write_layer(layer, x_lbksh):
        # Split like all layers, or each iteration would gather all of them.
        new_1bksh = constrain(jax.lax.dynamic_slice_in_dim(new_lbksh, layer, 1), *_AXES)
        return write_all(x_lbksh, new_1bksh, rows_b, layer)

    # A layer at a time, so that no device holds all layers of all new rows.
    return jax.lax.fori_loop(0, len(x_lbksh), write_layer, x_lbksh)

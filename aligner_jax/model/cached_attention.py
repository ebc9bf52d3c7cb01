"""Attention of new tokens to a cache and to each other (shape legend: llama.py)."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from aligner_jax.model.attention import Prefix, add_gated, joint_prefix
from aligner_jax.model.kernels import ragged, xla
from aligner_jax.model.kernels.ragged import Blocks
from aligner_jax.model.layout import swaps_last
from aligner_jax.model.logical import is_split, num_parts, on_each_device
from aligner_jax.model.row_prefix import RowPrefix

type _Part = tuple[Float[Array, "b k s h"], Float[Array, "b k s h"], Bool[Array, "#b t s"] | None]

_CACHE, _HEADS = (None, "batch", "kv_heads", None, None), ("batch", "kv_heads", None, None)
_BLOCKS = Blocks(("batch",), ("batch",), ("batch",))
_MASKED = jnp.finfo(jnp.float32).min


def blocks_to_read(k_lbksh: Float[Array, "l b k s h"], lengths_b: Int[Array, " b"]) -> Blocks[Array] | None:
    """Returns the blocks of a cache that a decoding step reads on TPUs, the same in all layers.

    None if `kernels.ragged` does not support the cache, or the mesh does not give every device whole rows and heads.
    """
    part = _part_in_blocks(k_lbksh)
    if part is None:
        return None
    find = functools.partial(ragged.filled_blocks, k_lbksh=part)
    on_tpu = on_each_device(find, (("batch",),), _BLOCKS)
    unused = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(on_tpu, lengths_b))
    return jax.lax.platform_dependent(lengths_b, tpu=on_tpu, default=lambda _: unused)


def slots_read(filled: int, k_lbksh: jax.ShapeDtypeStruct | Float[Array, "l b k s h"]) -> int:
    """Returns the number of slots per row that a decoding step reads on TPUs, without a joint prefix.

    Args:
      filled: number of filled slots of the row.
      k_lbksh: keys of the cache, or their shape and dtype.
    """
    part = _part_in_blocks(k_lbksh)
    return k_lbksh.shape[3] if part is None else ragged.slots_read(filled, part)


def attend_cached(
    q_btnh: Float[Array, "b t n h"],
    k_lbksh: Float[Array, "l b k s h"],
    v_lbksh: Float[Array, "l b k s h"],
    new_k_bkth: Float[Array, "b k t h"],
    new_v_bkth: Float[Array, "b k t h"],
    prefixes: Sequence[Prefix | RowPrefix] = (),
    *,
    lengths_b: Int[Array, " b"],
    layer: Int[Array, ""],
    blocks: Blocks[Array] | None = None,
) -> Float[Array, "b t n h"]:
    """Computes attention of t new tokens per row to the cache, to each other (causally), and to prefixes.

    The cache is neither written nor copied. On TPUs only its filled slots are read, if `blocks` is given and
    `kernels.ragged` supports the inputs.

    Args:
      q_btnh: queries of the new tokens, already rotated.
      k_lbksh, v_lbksh: the cache. Row b attends to its slots s < lengths_b[b].
      new_k_bkth, new_v_bkth: keys (already rotated) and values of the new tokens.
      prefixes: prefixes, which every query attends to; at most one is joint.
      lengths_b: number of filled slots per row.
      layer: index of the layer in the cache.
      blocks: `blocks_to_read` of the cache, if t is 1.

    Returns:
      The heads' outputs in q's dtype, before the output projection.
    """
    b, t = q_btnh.shape[:2]
    beside: list[_Part] = [(new_k_bkth, new_v_bkth, xla.causal_mask(t, None))]
    joint = joint_prefix(prefixes)
    if joint is not None:
        beside.append((*_joint_keys_values(joint, b, k_lbksh.dtype), None))
    attend_all = functools.partial(_attend_all_slots, beside=beside)
    attend_filled = functools.partial(_attend_filled_slots, beside=beside)
    arguments, num_beside = (q_btnh, k_lbksh, v_lbksh, lengths_b, layer), sum(keys.shape[2] for keys, _, _ in beside)
    if blocks is not None and ragged.supports(q_btnh.dtype, _of_a_device(k_lbksh), num_beside):
        o_btnh = jax.lax.platform_dependent(*arguments, blocks, tpu=attend_filled, default=attend_all)
    else:
        o_btnh = attend_all(*arguments)
    return add_gated(o_btnh, q_btnh, prefixes)


def _attend_all_slots(
    q_btnh, k_lbksh, v_lbksh, lengths_b, layer, _=None, *, beside: list[_Part]
) -> Float[Array, "b t n h"]:
    k_bksh, v_bksh = (jax.lax.dynamic_index_in_dim(x, layer, keepdims=False) for x in (k_lbksh, v_lbksh))
    filled_b1s = jnp.arange(k_bksh.shape[2])[None, None] < lengths_b[:, None, None]
    return _attend_parts(q_btnh, [(k_bksh, v_bksh, filled_b1s), *beside])


def _attend_filled_slots(q_b1nh, k_lbksh, v_lbksh, lengths_b, layer, blocks, *, beside) -> Float[Array, "b 1 n h"]:
    (b, _, n, h), k = q_b1nh.shape, k_lbksh.shape[2]
    beside_k_bkxh, beside_v_bkxh = (jnp.concatenate(arrays, axis=2) for arrays in list(zip(*beside, strict=True))[:2])
    attend = functools.partial(ragged.attend, slots_last=swaps_last(k_lbksh.shape))
    o_bkgh = on_each_device(attend, (_HEADS, _CACHE, _CACHE, _HEADS, _HEADS, ("batch",), _BLOCKS, ()), _HEADS)(
        q_b1nh.reshape(b, k, n // k, h), k_lbksh, v_lbksh, beside_k_bkxh, beside_v_bkxh, lengths_b, blocks, layer
    )
    return o_bkgh.reshape(q_b1nh.shape)


def _part_in_blocks(k_lbksh: jax.ShapeDtypeStruct | Float[Array, "l b k s h"]) -> jax.ShapeDtypeStruct | None:
    """Returns a device's part of a cache that `kernels.ragged` reads in blocks; None if all slots are read."""
    if is_split() and any(size % num_parts(axis) for size, axis in zip(k_lbksh.shape, _CACHE, strict=True)):
        return None
    part = _of_a_device(k_lbksh)
    return part if ragged.supports(k_lbksh.dtype, part, 1) else None


def _of_a_device(x_lbksh: jax.ShapeDtypeStruct | Float[Array, "l b k s h"]) -> jax.ShapeDtypeStruct:
    """Returns the shape and dtype of a device's part of a cache."""
    parts = [num_parts(axis) if is_split() else 1 for axis in _CACHE]
    shape = [size // number for size, number in zip(x_lbksh.shape, parts, strict=True)]
    return jax.ShapeDtypeStruct(shape, x_lbksh.dtype)


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

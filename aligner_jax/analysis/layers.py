"""A walk through the layers of an adapted model: what each receives, and what the adapter adds to it there."""

import dataclasses
import functools

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from aligner_jax.model.attention import Prefix, attend, gated_values
from aligner_jax.model.kernels import xla
from aligner_jax.model.layers import Layer, run_layers
from aligner_jax.model.llama import Layers, LlamaConfig, Params, embed, rms_norm, transform, unembed
from aligner_jax.model.rope import rotation
from aligner_jax.model.updates import project
from aligner_jax.peft import Adapter, bind

_OF_MLP = ("mlp_norm_ld", "gate_ldf", "up_ldf", "down_lfd")


@flax.struct.dataclass
class Walk:
    """What a model with an adapter does with a batch of texts; l counts all layers.

    Attributes:
      stream_lbt: norm of the residual stream that each layer receives.
      shift_lbt: norm of what the adapter adds to it there, see `walk`.
      shift_sum_ld: the sum of what it adds over all tokens of all texts, without the padding.
      last_lbd: the residual stream after each layer at each text's last token.
      final_bd: the same after the final norm.
      logits_bv: of the token that follows each text.
    """

    stream_lbt: Float[Array, "l b t"]
    shift_lbt: Float[Array, "l b t"]
    shift_sum_ld: Float[Array, "l d"]
    last_lbd: Float[Array, "l b d"]
    final_bd: Float[Array, "b d"]
    logits_bv: Float[Array, "b v"]


@functools.partial(jax.jit, static_argnames=("config",))
def walk(
    params: Params,
    adapter: Adapter | None,
    tokens_bt: Int[Array, "b t"],
    lengths_b: Int[Array, " b"],
    *,
    config: LlamaConfig,
) -> Walk:
    """One forward pass that keeps what `Walk` names.

    What an adapter adds in a layer is the difference between what the layer's attention puts into the residual stream
    with the adapter and without it, from the same input, plus the same difference of its MLP where the adapter changes
    that. The input is that of the adapted model, and how the layer's MLP and later layers respond is no part of it. Of
    an Aligner it is W_O (g_l ⊙ softmax(q K_aᵀ/√h) V_a), and with one token the constant W_O (g_l ⊙ V_a).

    Args:
      tokens_bt: texts, padded at their ends.
      lengths_b: tokens of each; 0 of rows that are no text.
    """
    bound = bind(adapter, params, config)
    params = bound.on(params)
    there_bt = jnp.arange(tokens_bt.shape[1])[None] < lengths_b[:, None]
    segment_ids_bt = there_bt.astype(jnp.int32)
    positions_bt = bound.first_position + jnp.arange(tokens_bt.shape[1], dtype=jnp.int32)[None]
    cos_sin = rotation(positions_bt, config)
    last_b = jnp.maximum(lengths_b - 1, 0)

    def at_last(x_btd):
        return jnp.take_along_axis(x_btd, last_b[:, None, None], axis=1)[:, 0].astype(jnp.float32)

    def step(x_btd, layer: Layer):
        after_btd, shift_btd = _adapted_layer(
            x_btd, layer, segment_ids_bt=segment_ids_bt, cos_sin=cos_sin, config=config
        )
        shift_btd = jnp.where(there_bt[..., None], shift_btd.astype(jnp.float32), 0)
        norms = (jnp.linalg.norm(y.astype(jnp.float32), axis=-1) for y in (x_btd, shift_btd))
        return after_btd, (*norms, jnp.sum(shift_btd, axis=(0, 1)), at_last(after_btd))

    x_btd, of_layers = run_layers(
        step, embed(params, tokens_bt), params.layers, range(config.num_layers), bound.adapted
    )
    final_btd = rms_norm(x_btd, params.norm_d, config.norm_eps)
    final_bd = jnp.take_along_axis(final_btd, last_b[:, None, None], axis=1)[:, 0]
    return Walk(*of_layers, final_bd=final_bd.astype(jnp.float32), logits_bv=unembed(params, final_bd))


def _adapted_layer(x_btd, layer: Layer, *, segment_ids_bt, cos_sin, config: LlamaConfig):
    """The layer's output, and what the adapter adds to the stream within it."""
    base, prefix, updates = layer.weights, layer.prefix, layer.updates
    heads: list[Array] = []

    def run(layer: Layers, prefix: Prefix | None) -> Array:
        """The layer's output; the output of its heads is put into `heads`, and what of them the prefix gives."""

        def attention(q_btnh, k_bskh, v_bskh):
            o_btnh = attend(q_btnh, k_bskh, v_bskh, prefix, segment_ids_bt=segment_ids_bt)
            heads.extend([o_btnh, _of_prefix(q_btnh, prefix)])
            return o_btnh

        return transform(x_btd, layer, attention, cos_sin=cos_sin, config=config)

    changed = layer.updated()
    after_btd = run(changed, prefix)
    if prefix is None and not updates:
        return after_btd, jnp.zeros_like(x_btd)
    if prefix is not None and not prefix.joint and not updates:
        # Not as a difference, of which little is left in bfloat16.
        return after_btd, project("btnh,nhd->btd", heads[1], base.o_lnhd)
    # The MLP of this run is used for nothing, and the compiler leaves it out.
    run(base, None)
    shift_btd = _put_out(heads[0], changed) - _put_out(heads[2], base)
    if any(name in _OF_MLP for part in updates for name in part):
        kept = {name: getattr(base, name) for name in _OF_MLP}
        shift_btd += after_btd - run(dataclasses.replace(changed, **kept), prefix)
    return after_btd, shift_btd


def _of_prefix(q_btnh, prefix: Prefix | None) -> Array:
    """What a gated prefix adds to the heads' outputs; zeros where there is none."""
    if prefix is None or prefix.joint:
        return jnp.zeros_like(q_btnh)
    gated_v_bpnh = gated_values(prefix, q_btnh.shape[2])
    if gated_v_bpnh.shape[1] == 1:
        return jnp.broadcast_to(gated_v_bpnh, q_btnh.shape).astype(q_btnh.dtype)
    return xla.attend_prefix(q_btnh, prefix.k_bpkh, gated_v_bpnh).astype(q_btnh.dtype)


def _put_out(o_btnh, layer: Layers) -> Array:
    o_btd = project("btnh,nhd->btd", o_btnh, layer.o_lnhd)
    return o_btd if layer.o_bias_ld is None else o_btd + layer.o_bias_ld.astype(o_btd.dtype)[None, None]

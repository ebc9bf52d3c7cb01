"""Walks through the layers of an adapted model and records the residual stream and the adapter's shifts."""

import dataclasses
import functools
from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from aligner_jax.model.attention import Prefix, add_gated, attend, joint_prefix
from aligner_jax.model.layers import Layer, run_layers
from aligner_jax.model.llama import Layers, LlamaConfig, Params, embed, rms_norm, transform, unembed
from aligner_jax.model.rope import rotation
from aligner_jax.model.row_prefix import RowPrefix
from aligner_jax.model.updates import project
from aligner_jax.peft import Adapter, bind

_OF_MLP = ("mlp_norm_ld", "gate_ldf", "up_ldf", "down_lfd")


@flax.struct.dataclass
class Walk:
    """Residual stream and shifts of an adapted model on a batch of texts; l counts all layers.

    Attributes:
      stream_lbt: norm of the residual stream at the layer's input.
      shift_lbt: norm of the adapter's shift in the layer; see `walk`.
      shift_sum_ld: sum of the shifts over all tokens of all texts, without padding.
      last_lbd: residual stream after the layer, at the text's last token.
      final_bd: residual stream after the final norm, at the text's last token.
      logits_bv: logits of the token that follows the text.
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
    """Runs one forward pass and returns its `Walk`.

    An adapter's shift in a layer is the difference of the attention's outputs with and without the adapter, for the
    same input. If the adapter changes the MLP, the difference of the MLP's outputs is added. The input is the adapted
    model's. The response of the layer's MLP and of later layers is not part of the shift. An Aligner's shift is
    W_O (g_l ⊙ softmax(q K_aᵀ/√h) V_a); with one token it is the constant W_O (g_l ⊙ V_a).

    Args:
      params: weights of the base.
      adapter: adapter to apply; None runs the base alone.
      tokens_bt: token ids of the texts, padded at their ends.
      lengths_b: number of tokens of a text; 0 for rows that hold no text.
      config: model config.
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
    """Returns the layer's output and the adapter's shift in it."""
    base, prefixes, updates = layer.weights, layer.prefixes, layer.updates
    heads: list[Array] = []

    def run(layer: Layers, prefixes: Sequence[Prefix | RowPrefix]) -> Array:
        """Returns the layer's output; appends the heads' output and the gated prefixes' part of it to `heads`."""

        def attention(q_btnh, k_bskh, v_bskh):
            o_btnh = attend(q_btnh, k_bskh, v_bskh, prefixes, segment_ids_bt=segment_ids_bt)
            heads.extend([o_btnh, add_gated(jnp.zeros_like(o_btnh), q_btnh, prefixes)])
            return o_btnh

        return transform(x_btd, layer, attention, cos_sin=cos_sin, config=config)

    changed = layer.updated()
    after_btd = run(changed, prefixes)
    if not prefixes and not updates:
        return after_btd, jnp.zeros_like(x_btd)
    if not updates and joint_prefix(prefixes) is None:
        # Computed directly, since a difference would lose most digits in bfloat16.
        return after_btd, project("btnh,nhd->btd", heads[1], base.o_lnhd)
    # The MLP's output of this run is unused, so the compiler removes it.
    run(base, ())
    shift_btd = _put_out(heads[0], changed) - _put_out(heads[2], base)
    if any(name in _OF_MLP for part in updates for name in part):
        kept = {name: getattr(base, name) for name in _OF_MLP}
        shift_btd += after_btd - run(dataclasses.replace(changed, **kept), prefixes)
    return after_btd, shift_btd


def _put_out(o_btnh, layer: Layers) -> Array:
    o_btd = project("btnh,nhd->btd", o_btnh, layer.o_lnhd)
    return o_btd if layer.o_bias_ld is None else o_btd + layer.o_bias_ld.astype(o_btd.dtype)[None, None]

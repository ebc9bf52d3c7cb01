"""The frozen base: a LLaMA-architecture transformer as pure functions over a pytree of stacked layers.

Suffixes of names give shapes, with the same letters as the einsum strings:

    b batch   t query position   s key position   d model   f mlp   n query heads   k kv heads   g = n / k
    h head dim   v vocabulary   l layer   p prefix token   a adapter   r LoRA rank
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from aligner_jax.model.attention import attend
from aligner_jax.model.config import LlamaConfig
from aligner_jax.model.layers import Adapted, Layer, layer_for_training, run_layers
from aligner_jax.model.logical import constrain, mesh_axes, num_parts, on_each_device
from aligner_jax.model.params import Layers, Params, abstract_params, init_params, param_specs
from aligner_jax.model.remat import Remat
from aligner_jax.model.rope import rotate, rotation
from aligner_jax.model.updates import project


def forward(
    params: Params,
    tokens_bt: Int[Array, "b t"],
    *,
    config: LlamaConfig,
    adapted: Sequence[Adapted] = (),
    segment_ids_bt: Int[Array, "b t"] | None = None,
    positions_bt: Int[Array, "b t"] | None = None,
    remat: Remat = "none",
    implementation: str = "auto",
) -> Float[Array, "b t d"]:
    """Returns hidden states after the final norm, in the parameters' dtype; `unembed` turns them into logits.

    Args:
      tokens_bt: token ids.
      adapted: prefixes and updates, each for a range of layers.
      segment_ids_bt: document ids of packed rows; positions attend within their own document only.
      positions_bt: rotary positions; by default 0, 1, … along the row, which is wrong for packed rows.
      remat: rematerialization, see `remat.parts`.
      implementation: implementation of `attend`.
    """
    if positions_bt is None:
        positions_bt = jnp.arange(tokens_bt.shape[1], dtype=jnp.int32)[None]
    cos_sin = rotation(positions_bt, config)

    def step(x_btd, layer: Layer):
        def attention(q_btnh, k_bskh, v_bskh):
            return attend(
                q_btnh, k_bskh, v_bskh, layer.prefixes, segment_ids_bt=segment_ids_bt, implementation=implementation
            )

        return transform(x_btd, layer.updated(), attention, cos_sin=cos_sin, config=config), None

    x_btd, _ = run_layers(
        step,
        embed(params, tokens_bt),
        params.layers,
        range(config.num_layers),
        adapted,
        read=functools.partial(layer_for_training, config=config, remat=remat),
        remat=remat,
    )
    return rms_norm(x_btd, params.norm_d, config.norm_eps)


def embed(params: Params, tokens_bt: Int[Array, "b t"]) -> Float[Array, "b t d"]:
    """Returns token embeddings in the parameters' dtype."""

    def look_up(embed_vd, tokens_bt):
        split_over = mesh_axes("vocab")
        if not split_over:
            return embed_vd[tokens_bt]
        # Each device holds a shard of the vocabulary.
        local_bt = tokens_bt - jax.lax.axis_index(split_over) * len(embed_vd)
        here_bt1 = ((local_bt >= 0) & (local_bt < len(embed_vd)))[..., None]
        return jax.lax.psum(jnp.where(here_bt1, embed_vd[local_bt], 0), split_over)

    with jax.named_scope("embed"):
        if tokens_bt.shape[0] % num_parts("batch"):
            return params.embed_vd[tokens_bt]
        # The table is gathered along "embed", since the looked-up rows would otherwise have to be resharded.
        rows = ("batch", None)
        return on_each_device(look_up, (("vocab", None), rows), (*rows, None))(params.embed_vd, tokens_bt)


class Head(NamedTuple):
    """Parameters of the output head: the output projection, or the embedding if the two are tied."""

    head_dv: Float[Array, "d v"] | None
    embed_vd: Float[Array, "v d"] | None

    @classmethod
    def of(cls, params: Params) -> "Head":
        return cls(params.head_dv, params.embed_vd if params.head_dv is None else None)

    @property
    def vocab_size(self) -> int:
        if self.head_dv is not None:
            return self.head_dv.shape[1]
        assert self.embed_vd is not None
        return self.embed_vd.shape[0]

    def block(self, start: int | Int[Array, ""], size: int) -> "Head":
        """Returns the head of the token ids start, …, start + size - 1."""
        slices = functools.partial(jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=size)
        return Head(
            None if self.head_dv is None else slices(self.head_dv, axis=1),
            None if self.embed_vd is None else slices(self.embed_vd, axis=0),
        )


def unembed(params: Params | Head, hidden_btd: Float[Array, "*bt d"]) -> Float[Array, "*bt v"]:
    """Returns float32 logits of hidden states after the final norm, with any number of leading axes."""
    with jax.named_scope("unembed"):
        if params.head_dv is None:
            return jnp.einsum("...d,vd->...v", hidden_btd, params.embed_vd, preferred_element_type=jnp.float32)
        return jnp.einsum("...d,dv->...v", hidden_btd, params.head_dv, preferred_element_type=jnp.float32)


def unembed_vjp(head: Head, x_cv: Float[Array, "*c v"]) -> Float[Array, "*c d"]:
    """Vector-Jacobian product of `unembed` with respect to the hidden states, in float32."""
    if head.head_dv is None:
        return jnp.einsum("...v,vd->...d", x_cv, head.embed_vd, preferred_element_type=jnp.float32)
    return jnp.einsum("...v,dv->...d", x_cv, head.head_dv, preferred_element_type=jnp.float32)


def head_columns(head: Head, tokens_c: Int[Array, " c"]) -> Float[Array, "c d"]:
    """Returns the head's column for each token id; a logit is the product of the hidden state with its column."""
    if head.head_dv is not None:
        return head.head_dv[:, tokens_c].T
    assert head.embed_vd is not None
    return head.embed_vd[tokens_c]


def transform(
    x_btd: Float[Array, "b t d"],
    layer: Layers,
    attention: Callable[[Array, Array, Array], Float[Array, "b t n h"]],
    *,
    cos_sin: tuple[Array, Array],
    config: LlamaConfig,
) -> Float[Array, "b t d"]:
    """Applies one layer: attention and MLP, each after a norm and added to the residual stream.

    Args:
      x_btd: residual stream.
      layer: weights of one layer, without the layer axis.
      attention: maps q_btnh, k_btkh (both rotated) and v_btkh to o_btnh.
      cos_sin: result of `rope.rotation`.
    """
    with jax.named_scope("attention"):
        y_btd = rms_norm(x_btd, layer.attn_norm_ld, config.norm_eps)
        q_btnh = _biased(project("btd,dnh->btnh", y_btd, layer.q_ldnh), layer.q_bias_lnh)
        k_btkh, v_btkh = keys_values(layer, y_btd)
        o_btnh = attention(rotate(q_btnh, cos_sin), rotate(k_btkh, cos_sin), v_btkh)
        o_btd = _biased(project("btnh,nhd->btd", o_btnh, layer.o_lnhd), layer.o_bias_ld)
        x_btd = constrain(x_btd + o_btd, "batch", None, None)
    with jax.named_scope("mlp"):
        y_btd = rms_norm(x_btd, layer.mlp_norm_ld, config.norm_eps)
        gate_btf = jax.nn.silu(project("btd,df->btf", y_btd, layer.gate_ldf))
        up_btf = project("btd,df->btf", y_btd, layer.up_ldf)
        mlp_btd = project("btf,fd->btd", gate_btf * up_btf, layer.down_lfd)
        return constrain(x_btd + mlp_btd, "batch", None, None)


def keys_values(layer: Layers, y_btd: Float[Array, "b t d"]) -> tuple[Float[Array, "b t k h"], Float[Array, "b t k h"]]:
    """Returns one layer's keys (not rotated) and values of y, its normed input or a prefix's tokens."""
    k_btkh = _biased(project("btd,dkh->btkh", y_btd, layer.k_ldkh), layer.k_bias_lkh)
    v_btkh = _biased(project("btd,dkh->btkh", y_btd, layer.v_ldkh), layer.v_bias_lkh)
    return k_btkh, v_btkh


def rms_norm(x_btd: Float[Array, "*bt d"], weight_d: Float[Array, " d"], eps: float) -> Float[Array, "*bt d"]:
    """Returns x / sqrt(mean(x²) + eps) · weight in x's dtype; the statistics are computed in float32."""
    x32_btd = x_btd.astype(jnp.float32)
    scale_bt1 = jax.lax.rsqrt(jnp.mean(jnp.square(x32_btd), axis=-1, keepdims=True) + eps)
    normed_btd = (x32_btd * scale_bt1).astype(x_btd.dtype)
    return normed_btd * weight_d.reshape((1,) * (x_btd.ndim - 1) + weight_d.shape)


def _biased(y: Array, bias: Array | None) -> Array:
    if bias is None:
        return y
    rows = bias.shape[:1] if bias.ndim == y.ndim - 1 else (1,)
    return y + bias.astype(y.dtype).reshape((*rows, 1, *y.shape[2:]))


__all__ = [
    "Head",
    "Layers",
    "LlamaConfig",
    "Params",
    "Remat",
    "abstract_params",
    "embed",
    "forward",
    "head_columns",
    "init_params",
    "keys_values",
    "param_specs",
    "rms_norm",
    "transform",
    "unembed",
    "unembed_vjp",
]

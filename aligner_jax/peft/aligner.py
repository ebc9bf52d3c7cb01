"""Aligner (arXiv 2312.05503): prefix tokens that all adapted layers share, and a gate per layer and head."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from aligner_jax.errors import InputError
from aligner_jax.files.fields import MAX_NUMBER
from aligner_jax.files.identity import later
from aligner_jax.model.attention import Prefix
from aligner_jax.model.layers import Adapted
from aligner_jax.model.llama import LlamaConfig, Params
from aligner_jax.peft.adapter import Method, scaled
from aligner_jax.peft.bound import Bound
from aligner_jax.peft.gated import GatedOptions, gate_shape, gated_cost, spread_gates
from aligner_jax.peft.project_tokens import project_tokens
from aligner_jax.peft.words import frequent_embeddings
from aligner_jax.runtime.fields import number


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlignerOptions(GatedOptions):
    """Options of an Aligner; the defaults are the paper's.

    Attributes:
      gates: sharing of gates, see `gated.gate_shape`; or "token" for one gate per layer, token and query head. There is
        then no softmax over the tokens: a layer adds Σ_p g_p ⊙ V_p, a constant like that of one token.
      tokens: width of a token: "model" for d_model, or "head" for head_dim, with the same values for all heads (the
        authors' code combines "head" tokens with a "global" gate).
      init: first values of the tokens: "normal" draws them; "words" takes embeddings of frequent tokens of the base's
        vocabulary (`words.frequent_embeddings`), chosen by the seed.
      init_std: standard deviation of the first values. None is 1 for "normal", and the embeddings' own for "words".
    """

    gates: Literal["head", "kv_head", "layer", "shared_heads", "global", "token"] = "head"
    tokens: Literal["model", "head"] = "model"
    init: Literal["normal", "words"] = later("normal")
    init_std: float | None = number(None, above=0, most=MAX_NUMBER, later=True)

    @property
    def is_constant(self) -> bool:
        """True if the prefix adds the same to a layer at every position."""
        return self.gates == "token" or super().is_constant

    @property
    def needs_base(self) -> bool:
        """True if the tokens begin as embeddings of the base."""
        return self.init == "words"

    def check(self, config: LlamaConfig | None) -> None:
        """Raises InputError if start_layer is not a layer, or if the width of "head" tokens does not fit."""
        super().check(config)
        if self.tokens == "head" and self.init == "words":
            raise InputError("tokens is 'head', but init is 'words': embeddings have the model's width; set 'model'")
        if config is not None and self.tokens == "head" and config.d_model % config.head_dim:
            raise InputError(
                f"tokens is 'head', but the model's width {config.d_model} is no multiple of a head's, "
                f"{config.head_dim}"
            )


def shapes(options: AlignerOptions, config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the trained arrays; by default p · d + (num_layers - start_layer) · n parameters.

    With a gate for each token there are p · d + (num_layers - start_layer) · p · n.
    """
    width, num_layers = config.d_model if options.tokens == "model" else config.head_dim, options.num_adapted(config)
    tokens = {"tokens_pd": (options.num_tokens, width)}
    if options.gates == "token":
        return {**tokens, "gates_lpn": (num_layers, options.num_tokens, config.num_heads)}
    return {**tokens, "gates_ln": gate_shape(options.gates, num_layers, config)}


def init(options: AlignerOptions, config: LlamaConfig, key: Array, params: Params | None = None) -> dict[str, Array]:
    """Returns initial tokens and gates 0, so that the model equals the base and only gates have a gradient.

    Args:
      params: parameters of the base, which `init` "words" reads; without them the tokens are normal ones.
    """
    shape = shapes(options, config)
    if options.needs_base and params is not None:
        tokens_pd = frequent_embeddings(params, options.num_tokens, key)
        if options.init_std is not None:
            tokens_pd *= options.init_std / jnp.std(tokens_pd)
    else:
        tokens_pd = jax.random.normal(key, shape["tokens_pd"])
        if options.init_std is not None:
            tokens_pd *= options.init_std
    return {"tokens_pd": tokens_pd, **{name: jnp.zeros(x) for name, x in shape.items() if name != "tokens_pd"}}


def bind(
    trainable: dict[str, Array],
    options: AlignerOptions,
    params: Params,
    config: LlamaConfig,
    dropout_key: Array | None = None,
) -> Bound:
    """Projects the shared tokens with the key and value projections of every adapted layer.

    Keys and values of the prefix are [l, 1, p, k, h] and its gates [l, 1, n], where l counts adapted layers only.
    Tokens with gates of their own become one token with values of every query head, [l, 1, 1, n, h].
    """
    tokens_pd = trainable["tokens_pd"].astype(params.embed_vd.dtype)
    tokens_pd = jnp.tile(tokens_pd, (1, config.d_model // tokens_pd.shape[1]))
    k_lbpkh, v_lbpkh = project_tokens(
        lambda _: tokens_pd, params, config, options.start_layer, is_constant=options.is_constant
    )
    if options.gates == "token":
        prefix = _summed(k_lbpkh, v_lbpkh, trainable["gates_lpn"])
        return Bound(adapted=(Adapted(options.adapted(config), prefix=prefix),))
    gates_lbn = spread_gates(trainable["gates_ln"], options.num_adapted(config), config)
    prefix = Prefix(k_bpkh=k_lbpkh, v_bpkh=v_lbpkh, gate_bn=gates_lbn)
    return Bound(adapted=(Adapted(options.adapted(config), prefix=prefix),))


def _summed(
    k_lbpkh: Float[Array, "l 1 p k h"], v_lbpkh: Float[Array, "l 1 p k h"], gates_lpn: Float[Array, "l p n"]
) -> Prefix:
    """Returns the sum of the tokens' gated values as a prefix of one token, in float32."""
    (num_layers, _, p, k, h), n = v_lbpkh.shape, gates_lpn.shape[2]
    gates_lpkg = gates_lpn.astype(jnp.float32).reshape(num_layers, p, k, n // k)
    v_lpkh = v_lbpkh[:, 0].astype(jnp.float32)
    sum_lkgh = jnp.einsum("lpkg,lpkh->lkgh", gates_lpkg, v_lpkh, precision="highest")
    values_lbpnh = sum_lkgh.reshape(num_layers, 1, 1, n, h)
    return Prefix(k_bpkh=k_lbpkh[:, :, :1], v_bpkh=values_lbpnh, gate_bn=jnp.ones((num_layers, 1, n)))


ALIGNER = Method(
    options=AlignerOptions, shapes=shapes, init=init, bind=bind, cost=gated_cost, with_strength=scaled("gates_")
)

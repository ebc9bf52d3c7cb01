"""Aligner (arXiv 2312.05503): prefix tokens that all adapted layers share, and a gate per layer and head."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array

from aligner_jax.errors import InputError
from aligner_jax.model.attention import Prefix
from aligner_jax.model.layers import Adapted
from aligner_jax.model.llama import LlamaConfig, Params
from aligner_jax.peft.adapter import Method, scaled
from aligner_jax.peft.bound import Bound
from aligner_jax.peft.gated import GatedOptions, gate_shape, gated_cost, spread_gates
from aligner_jax.peft.project_tokens import project_tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlignerOptions(GatedOptions):
    """Options of an Aligner; the defaults are the paper's.

    Attributes:
      gates: sharing of gates, see `gated.gate_shape`.
      tokens: width of a token: "model" for d_model, or "head" for head_dim, with the same values for all heads (the
        authors' code combines "head" tokens with a "global" gate).
    """

    gates: Literal["head", "kv_head", "layer", "shared_heads", "global"] = "head"
    tokens: Literal["model", "head"] = "model"

    def check(self, config: LlamaConfig | None) -> None:
        """Raises InputError if start_layer is not a layer, or if head_dim of "head" tokens does not divide d_model."""
        super().check(config)
        if config is not None and self.tokens == "head" and config.d_model % config.head_dim:
            raise InputError(
                f"tokens is 'head', but the model's width {config.d_model} is no multiple of a head's, "
                f"{config.head_dim}"
            )


def shapes(options: AlignerOptions, config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the trained arrays; by default p · d + (num_layers - start_layer) · n parameters."""
    width = config.d_model if options.tokens == "model" else config.head_dim
    return {
        "tokens_pd": (options.num_tokens, width),
        "gates_ln": gate_shape(options.gates, options.num_adapted(config), config),
    }


def init(options: AlignerOptions, config: LlamaConfig, key: Array) -> dict[str, Array]:
    """Returns tokens from N(0, 1) and gates 0, so that the model equals the base and only gates have a gradient."""
    shape = shapes(options, config)
    return {"tokens_pd": jax.random.normal(key, shape["tokens_pd"]), "gates_ln": jnp.zeros(shape["gates_ln"])}


def bind(
    trainable: dict[str, Array],
    options: AlignerOptions,
    params: Params,
    config: LlamaConfig,
    dropout_key: Array | None = None,
) -> Bound:
    """Projects the shared tokens with the key and value projections of every adapted layer.

    Keys and values of the prefix are [l, 1, p, k, h] and its gates [l, 1, n], where l counts adapted layers only.
    """
    tokens_pd = trainable["tokens_pd"].astype(params.embed_vd.dtype)
    tokens_pd = jnp.tile(tokens_pd, (1, config.d_model // tokens_pd.shape[1]))
    k_lbpkh, v_lbpkh = project_tokens(lambda _: tokens_pd, params, config, options.start_layer)
    gates_lbn = spread_gates(trainable["gates_ln"], options.num_adapted(config), config)
    prefix = Prefix(k_bpkh=k_lbpkh, v_bpkh=v_lbpkh, gate_bn=gates_lbn)
    return Bound(adapted=(Adapted(options.adapted(config), prefix=prefix),))


ALIGNER = Method(
    options=AlignerOptions, shapes=shapes, init=init, bind=bind, cost=gated_cost, with_strength=scaled("gates_")
)

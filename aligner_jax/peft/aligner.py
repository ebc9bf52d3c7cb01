"""Aligner (arXiv 2312.05503): one set of tokens shared by every adapted layer, and a gate per layer and head."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from aligner_jax.errors import InputError
from aligner_jax.model.attention import Prefix
from aligner_jax.model.layers import Adapted
from aligner_jax.model.llama import LlamaConfig, Params
from aligner_jax.peft.adapter import Options
from aligner_jax.peft.bound import Bound
from aligner_jax.peft.gates import GATES, gate_shape, spread_gates
from aligner_jax.peft.options import adapted_layers, check_choice, check_num_tokens, check_start_layer
from aligner_jax.peft.project_tokens import project_tokens

DEFAULTS = {"num_tokens": 1, "start_layer": 2, "gates": "head", "tokens": "model"}
"""gates: see `gates.GATES`. tokens: as wide as the "model", or as one "head" and the same for all heads (the authors'
code names the combination of "head" tokens with a "global" gate)."""
STRENGTH = ("gates_",)
"""Beginnings of the names of the trained arrays that the adapter's effect on each layer is multiplied with."""


def check(options: Options, config: LlamaConfig | None) -> None:
    """Refuses options that cannot be had on this model.

    Raises:
      InputError: num_tokens below one, start_layer outside the model, an unknown kind of gates or tokens, or tokens of
        a head's width on a model whose width is not a multiple of it.
    """
    check_num_tokens(options)
    check_start_layer(options, config)
    check_choice(options, "gates", GATES)
    check_choice(options, "tokens", ("model", "head"))
    if config is not None and options["tokens"] == "head" and config.d_model % config.head_dim:
        raise InputError(
            f"tokens is 'head', but the model's width {config.d_model} is no multiple of a head's, {config.head_dim}"
        )


def shapes(options: Options, config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the trained arrays; by default p · d + (layers - start_layer) · heads numbers."""
    width = config.d_model if options["tokens"] == "model" else config.head_dim
    return {
        "tokens_pd": (options["num_tokens"], width),
        "gates_ln": gate_shape(options["gates"], adapted_layers(options, config), config),
    }


def init(options: Options, config: LlamaConfig, key: Array) -> dict[str, Array]:
    """Tokens from N(0, 1), gates at 0, float32: at first the model is the base, and only the gates have a gradient."""
    shape = shapes(options, config)
    return {"tokens_pd": jax.random.normal(key, shape["tokens_pd"]), "gates_ln": jnp.zeros(shape["gates_ln"])}


def bind(
    trainable: dict[str, Array], options: Options, params: Params, config: LlamaConfig, dropout_key: Array | None = None
) -> Bound:
    """The prefix of every adapted layer, stacked: the shared tokens through each layer's own key and value projections.

    Returns:
      A `Prefix` with leaves [l, 1, p, k, h] and gates [l, 1, n], l over the adapted layers.
    """
    tokens_pd = trainable["tokens_pd"].astype(params.embed_vd.dtype)
    tokens_pd = jnp.tile(tokens_pd, (1, config.d_model // tokens_pd.shape[1]))
    k_lbpkh, v_lbpkh = project_tokens(lambda _: tokens_pd, params, config, options["start_layer"])
    gates_lbn = spread_gates(trainable["gates_ln"], adapted_layers(options, config), config)
    prefix = Prefix(k_bpkh=k_lbpkh, v_bpkh=v_lbpkh, gate_bn=gates_lbn)
    layers = range(options["start_layer"], config.num_layers)
    return Bound(adapted=(Adapted(layers, prefix=prefix),))

"""LLaMA-Adapter (arXiv 2303.16199): tokens of its own for every adapted layer, and gates."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from aligner_jax.model.attention import Prefix
from aligner_jax.model.layers import Adapted
from aligner_jax.model.llama import LlamaConfig, Params
from aligner_jax.peft.adapter import Options
from aligner_jax.peft.bound import Bound
from aligner_jax.peft.gates import gate_shape, spread_gates
from aligner_jax.peft.options import adapted_layers, check_choice, check_flag, check_num_tokens, check_start_layer
from aligner_jax.peft.project_tokens import project_tokens

DEFAULTS = {"num_tokens": 10, "start_layer": 2, "gates": "head", "tanh": False}
"""gates: one a "head" of each layer, or one a "layer" as in Hugging Face PEFT's AdaptionPrompt. tanh: the gate's
hyperbolic tangent is what weighs, as in the original; Aligner's comparison has none."""
STRENGTH = ("gates_",)
"""As in `aligner`."""


def check(options: Options, config: LlamaConfig | None) -> None:
    """Refuses options that cannot be had on this model.

    Raises:
      InputError: num_tokens below one, start_layer outside the model, an unknown kind of gates, or a tanh that is
        neither True nor False.
    """
    check_num_tokens(options)
    check_start_layer(options, config)
    check_choice(options, "gates", ("head", "layer"))
    check_flag(options, "tanh")


def shapes(options: Options, config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the trained arrays: l · (p · d + heads) numbers, l counting adapted layers only."""
    num_layers = adapted_layers(options, config)
    return {
        "tokens_lpd": (num_layers, options["num_tokens"], config.d_model),
        "gates_ln": gate_shape(options["gates"], num_layers, config),
    }


def init(options: Options, config: LlamaConfig, key: Array) -> dict[str, Array]:
    """Tokens from N(0, 1), gates at 0, float32: at first the model is the base."""
    shape = shapes(options, config)
    return {"tokens_lpd": jax.random.normal(key, shape["tokens_lpd"]), "gates_ln": jnp.zeros(shape["gates_ln"])}


def bind(
    trainable: dict[str, Array], options: Options, params: Params, config: LlamaConfig, dropout_key: Array | None = None
) -> Bound:
    """The prefix of every adapted layer, stacked: its tokens through its own key and value projections."""
    tokens_lpd = trainable["tokens_lpd"].astype(params.embed_vd.dtype)

    def tokens_of(index):
        return jax.lax.dynamic_index_in_dim(tokens_lpd, index, keepdims=False)

    k_lbpkh, v_lbpkh = project_tokens(tokens_of, params, config, options["start_layer"])
    gates_ln = jnp.tanh(trainable["gates_ln"]) if options["tanh"] else trainable["gates_ln"]
    gates_lbn = spread_gates(gates_ln, adapted_layers(options, config), config)
    prefix = Prefix(k_bpkh=k_lbpkh, v_bpkh=v_lbpkh, gate_bn=gates_lbn)
    layers = range(options["start_layer"], config.num_layers)
    return Bound(adapted=(Adapted(layers, prefix=prefix),))

"""LLaMA-Adapter (arXiv 2303.16199): separate prefix tokens for every adapted layer, and gates."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from aligner_jax.files.fields import MAX_INTEGER
from aligner_jax.model.attention import Prefix
from aligner_jax.model.layers import Adapted
from aligner_jax.model.llama import LlamaConfig, Params
from aligner_jax.peft.adapter import Adapter, Method, scaled
from aligner_jax.peft.bound import Bound
from aligner_jax.peft.gated import GatedOptions, gate_shape, gated_cost, spread_gates
from aligner_jax.peft.project_tokens import project_tokens
from aligner_jax.runtime.fields import number


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaAdapterOptions(GatedOptions):
    """Options of a LLaMA-Adapter.

    Attributes:
      num_tokens: p, the number of prefix tokens per layer.
      gates: "head" for one gate per layer and query head, or "layer" for one per layer (Hugging Face PEFT's
        AdaptionPrompt).
      tanh: True to scale the prefix by tanh(gate), as in the original; the Aligner paper's comparison has no tanh.
    """

    num_tokens: int = number(10, least=1, most=MAX_INTEGER)
    gates: Literal["head", "layer"] = "head"
    tanh: bool = False

    def weights[Gates: (Array, np.ndarray)](self, gates_ln: Gates) -> Gates:
        """Returns the factors of the prefix's outputs for the trained gates [l, n]."""
        if not self.tanh:
            return gates_ln
        return np.tanh(gates_ln) if isinstance(gates_ln, np.ndarray) else jnp.tanh(gates_ln)


def shapes(options: LlamaAdapterOptions, config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the trained arrays: l · (p · d + gates) parameters, where l counts adapted layers only."""
    num_layers = options.num_adapted(config)
    return {
        "tokens_lpd": (num_layers, options.num_tokens, config.d_model),
        "gates_ln": gate_shape(options.gates, num_layers, config),
    }


def init(options: LlamaAdapterOptions, config: LlamaConfig, key: Array) -> dict[str, Array]:
    """Returns tokens from N(0, 1) and gates 0, so that the model equals the base."""
    shape = shapes(options, config)
    return {"tokens_lpd": jax.random.normal(key, shape["tokens_lpd"]), "gates_ln": jnp.zeros(shape["gates_ln"])}


def bind(
    trainable: dict[str, Array],
    options: LlamaAdapterOptions,
    params: Params,
    config: LlamaConfig,
    dropout_key: Array | None = None,
) -> Bound:
    """Projects the tokens of every adapted layer with that layer's key and value projections."""
    tokens_lpd = trainable["tokens_lpd"].astype(params.embed_vd.dtype)

    def tokens_of(index):
        return jax.lax.dynamic_index_in_dim(tokens_lpd, index, keepdims=False)

    k_lbpkh, v_lbpkh = project_tokens(tokens_of, params, config, options.start_layer, is_constant=options.is_constant)
    gates_lbn = spread_gates(options.weights(trainable["gates_ln"]), options.num_adapted(config), config)
    prefix = Prefix(k_bpkh=k_lbpkh, v_bpkh=v_lbpkh, gate_bn=gates_lbn)
    return Bound(adapted=(Adapted(options.adapted(config), prefix=prefix),))


def with_strength(adapter: Adapter, strength: float) -> Adapter:
    """Returns the adapter with its gates multiplied. If options.tanh, tanh(gate) first replaces the gate."""
    options = adapter.options
    assert isinstance(options, LlamaAdapterOptions)
    if options.tanh and strength != 1:
        gates_ln = options.weights(adapter.trainable["gates_ln"])
        options = dataclasses.replace(options, tanh=False)
        adapter = adapter.replace(trainable={**adapter.trainable, "gates_ln": gates_ln}, options=options)
    return _scaled(adapter, strength)


_scaled = scaled("gates_")
LLAMA_ADAPTER = Method(
    options=LlamaAdapterOptions, shapes=shapes, init=init, bind=bind, cost=gated_cost, with_strength=with_strength
)

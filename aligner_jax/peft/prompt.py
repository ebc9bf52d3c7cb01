"""Prompt tuning (arXiv 2104.08691): trained embeddings before the input.

The embeddings do not depend on the text, so their keys and values are the same for all documents. They are computed
once, and every document attends to them as a prefix that shares its softmax, at positions before the text's. This is
equivalent to prepending the embeddings to each document, also in packed rows and in decoding.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array

from aligner_jax.files.fields import MAX_INTEGER, MAX_NUMBER
from aligner_jax.model.attention import Prefix, attend
from aligner_jax.model.layers import Adapted, Layer, run_layers
from aligner_jax.model.llama import LlamaConfig, Params, transform
from aligner_jax.model.rope import rotation
from aligner_jax.peft.adapter import Method, Options
from aligner_jax.peft.bound import Bound
from aligner_jax.runtime.fields import number
from aligner_jax.runtime.roofline import AdapterCost, layer_weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptOptions(Options):
    """Options of prompt tuning. It has no strength, since its effect is not linear.

    Attributes:
      num_tokens: p, the number of trained embeddings.
      init_std: standard deviation of the initial embeddings.
    """

    num_tokens: int = number(20, least=1, most=MAX_INTEGER)
    init_std: int | float = number(0.02, least=0, most=MAX_NUMBER)


def shapes(options: PromptOptions, config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of the trained array: p · d parameters."""
    return {"tokens_pd": (options.num_tokens, config.d_model)}


def init(options: PromptOptions, config: LlamaConfig, key: Array) -> dict[str, Array]:
    """Returns normally distributed embeddings. The initial model differs from the base."""
    return {"tokens_pd": options.init_std * jax.random.normal(key, shapes(options, config)["tokens_pd"])}


def bind(
    trainable: dict[str, Array],
    options: PromptOptions,
    params: Params,
    config: LlamaConfig,
    dropout_key: Array | None = None,
) -> Bound:
    """Returns every layer's keys (rotated) and values of the embeddings, as a joint prefix."""
    x_1pd = trainable["tokens_pd"].astype(params.embed_vd.dtype)[None]
    cos_sin = rotation(jnp.arange(options.num_tokens, dtype=jnp.int32)[None], config)

    def step(x_1pd, layer: Layer):
        found = None

        def attention(q_btnh, k_bskh, v_bskh):
            nonlocal found
            found = k_bskh, v_bskh
            return attend(q_btnh, k_bskh, v_bskh)

        x_1pd = transform(x_1pd, layer.weights, attention, cos_sin=cos_sin, config=config)
        return x_1pd, found

    layers = range(config.num_layers)
    _, (k_lbpkh, v_lbpkh) = run_layers(step, x_1pd, params.layers, layers, remat="full")
    gates_lbn = jnp.ones((config.num_layers, 1, config.num_heads))
    prefix = Prefix(k_bpkh=k_lbpkh, v_bpkh=v_lbpkh, gate_bn=gates_lbn, joint=True)
    return Bound(adapted=(Adapted(layers, prefix=prefix),), first_position=options.num_tokens)


def cost(options: PromptOptions, config: LlamaConfig) -> AdapterCost:
    """Returns the cost of running the embeddings through all layers, and of attending to their keys."""
    return AdapterCost(num_tokens=options.num_tokens, bind_weights=layer_weights(config))


PROMPT = Method(options=PromptOptions, shapes=shapes, init=init, bind=bind, cost=cost)

"""Prompt tuning (arXiv 2104.08691): trained embeddings before the input.

Nothing before them depends on the text, so every layer's keys and values of them are the same for all documents. They
are computed once, from the embeddings alone, and every document attends to them as a prefix in its own softmax, at
positions after theirs: what it would have in front of each document, also in packed rows and while decoding.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from aligner_jax.model.attention import Prefix, attend
from aligner_jax.model.layers import Adapted, Layer, run_layers
from aligner_jax.model.llama import LlamaConfig, Params, transform
from aligner_jax.model.rope import rotation
from aligner_jax.peft.adapter import Options
from aligner_jax.peft.bound import Bound
from aligner_jax.peft.options import check_num_tokens, check_number

DEFAULTS = {"num_tokens": 20, "init_std": 0.02}
"""init_std: of the embeddings' initial normal distribution."""
STRENGTH: tuple[str, ...] = ()
"""Nothing in it is linear, see `aligner`."""


def check(options: Options, config: LlamaConfig | None) -> None:
    """Refuses options that cannot be had on this model. Raises InputError: see the options' names in the sentence."""
    check_num_tokens(options)
    check_number(options, "init_std", least=0)


def shapes(options: Options, config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Shape of the trained array: p · d numbers."""
    return {"tokens_pd": (options["num_tokens"], config.d_model)}


def init(options: Options, config: LlamaConfig, key: Array) -> dict[str, Array]:
    """Normal numbers, float32. The model is not the base at first."""
    return {"tokens_pd": options["init_std"] * jax.random.normal(key, shapes(options, config)["tokens_pd"])}


def bind(
    trainable: dict[str, Array], options: Options, params: Params, config: LlamaConfig, dropout_key: Array | None = None
) -> Bound:
    """Keys (rotated) and values of the embeddings in every layer, as a prefix in one softmax with the text."""
    x_1pd = trainable["tokens_pd"].astype(params.embed_vd.dtype)[None]
    cos_sin = rotation(jnp.arange(options["num_tokens"], dtype=jnp.int32)[None], config)

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
    return Bound(adapted=(Adapted(layers, prefix=prefix),), first_position=options["num_tokens"])

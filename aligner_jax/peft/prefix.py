"""Prefix tuning (arXiv 2101.00190): trained keys and values per layer, in one softmax with the text."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array

from aligner_jax.files.fields import MAX_INTEGER, MAX_NUMBER
from aligner_jax.model.attention import Prefix
from aligner_jax.model.layers import Adapted
from aligner_jax.model.llama import LlamaConfig, Params
from aligner_jax.peft.adapter import LayerOptions, Method
from aligner_jax.peft.bound import Bound
from aligner_jax.runtime.fields import number
from aligner_jax.runtime.roofline import AdapterCost


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrefixOptions(LayerOptions):
    """Options of prefix tuning.

    Keys and values are trained directly, without the paper's reparametrization by a network. There is no strength: a
    prefix takes attention from the text even if its values are zero.

    Attributes:
      num_tokens: p, the number of prefix tokens.
      init_std: standard deviation of the initial keys and values.
    """

    num_tokens: int = number(10, least=1, most=MAX_INTEGER)
    start_layer: int = number(0, least=0, below=MAX_INTEGER)
    init_std: int | float = number(0.02, least=0, most=MAX_NUMBER)


def shapes(options: PrefixOptions, config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the trained arrays: 2 · l · p · k · h parameters, where l counts adapted layers only."""
    shape = (options.num_adapted(config), options.num_tokens, config.num_kv_heads, config.head_dim)
    return {"keys_lpkh": shape, "values_lpkh": shape}


def init(options: PrefixOptions, config: LlamaConfig, key: Array) -> dict[str, Array]:
    """Returns normally distributed keys and values. The initial model differs from the base."""
    keys = jax.random.split(key)
    found = shapes(options, config).items()
    return {name: options.init_std * jax.random.normal(k, shape) for k, (name, shape) in zip(keys, found, strict=True)}


def bind(
    trainable: dict[str, Array],
    options: PrefixOptions,
    params: Params,
    config: LlamaConfig,
    dropout_key: Array | None = None,
) -> Bound:
    """Returns the trained keys, which are not rotated, and values as a joint prefix."""
    dtype = params.embed_vd.dtype
    k_lbpkh, v_lbpkh = (trainable[name][:, None].astype(dtype) for name in ("keys_lpkh", "values_lpkh"))
    gates_lbn = jnp.ones((k_lbpkh.shape[0], 1, config.num_heads))
    prefix = Prefix(k_bpkh=k_lbpkh, v_bpkh=v_lbpkh, gate_bn=gates_lbn, joint=True)
    return Bound(adapted=(Adapted(options.adapted(config), prefix=prefix),))


def cost(options: PrefixOptions, config: LlamaConfig) -> AdapterCost:
    """Returns the cost of attending to the prefix in the adapted layers; nothing is projected."""
    return AdapterCost(start_layer=options.start_layer, num_tokens=options.num_tokens)


PREFIX = Method(options=PrefixOptions, shapes=shapes, init=init, bind=bind, cost=cost)

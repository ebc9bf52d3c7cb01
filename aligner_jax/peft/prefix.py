"""Prefix tuning (arXiv 2101.00190): keys and values per layer, in one softmax with the text's."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array

from aligner_jax.files.fields import MOST_INTEGER, MOST_NUMBER
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

    There is no network that makes keys and values (the paper's reparametrization): they are trained as they are. Nor is
    there a strength: a prefix takes attention from the text even where its values are zero.

    Attributes:
      init_std: standard deviation of the keys' and values' initial normal distribution.
    """

    num_tokens: int = number(10, least=1, most=MOST_INTEGER)
    start_layer: int = number(0, least=0, below=MOST_INTEGER)
    init_std: int | float = number(0.02, least=0, most=MOST_NUMBER)


def shapes(options: PrefixOptions, config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the trained arrays: 2 · l · p · kv heads · head dim numbers, for the adapted layers."""
    shape = (options.num_adapted(config), options.num_tokens, config.num_kv_heads, config.head_dim)
    return {"keys_lpkh": shape, "values_lpkh": shape}


def init(options: PrefixOptions, config: LlamaConfig, key: Array) -> dict[str, Array]:
    """Returns normal numbers. The model is not the base at first."""
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
    """Returns the prefix as it is trained; its keys are not rotated."""
    dtype = params.embed_vd.dtype
    k_lbpkh, v_lbpkh = (trainable[name][:, None].astype(dtype) for name in ("keys_lpkh", "values_lpkh"))
    gates_lbn = jnp.ones((k_lbpkh.shape[0], 1, config.num_heads))
    prefix = Prefix(k_bpkh=k_lbpkh, v_bpkh=v_lbpkh, gate_bn=gates_lbn, joint=True)
    return Bound(adapted=(Adapted(options.adapted(config), prefix=prefix),))


def cost(options: PrefixOptions, config: LlamaConfig) -> AdapterCost:
    """Each query of the adapted layers attends to the keys, which nothing has to make."""
    return AdapterCost(start_layer=options.start_layer, num_tokens=options.num_tokens)


PREFIX = Method(options=PrefixOptions, shapes=shapes, init=init, bind=bind, cost=cost)

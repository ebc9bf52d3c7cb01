"""Prefix tuning (arXiv 2101.00190): keys and values per layer, in one softmax with the text's."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from aligner_jax.model.attention import Prefix
from aligner_jax.model.layers import Adapted
from aligner_jax.model.llama import LlamaConfig, Params
from aligner_jax.peft.adapter import Options
from aligner_jax.peft.bound import Bound
from aligner_jax.peft.options import adapted_layers, check_num_tokens, check_number, check_start_layer

DEFAULTS = {"num_tokens": 10, "start_layer": 0, "init_std": 0.02}
"""init_std: of the keys' and values' initial normal distribution. There is no network that makes them (the paper's
reparametrization): they are trained as they are."""
STRENGTH: tuple[str, ...] = ()
"""Nothing in it is linear (see `aligner`): a prefix takes attention from the text even where its values are zero."""


def check(options: Options, config: LlamaConfig | None) -> None:
    """Refuses options that cannot be had on this model. Raises InputError: see the options' names in the sentence."""
    check_num_tokens(options)
    check_start_layer(options, config)
    check_number(options, "init_std", least=0)


def shapes(options: Options, config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the trained arrays: 2 · l · p · kv heads · head dim numbers, l counting adapted layers only."""
    num_layers = adapted_layers(options, config)
    shape = (num_layers, options["num_tokens"], config.num_kv_heads, config.head_dim)
    return {"keys_lpkh": shape, "values_lpkh": shape}


def init(options: Options, config: LlamaConfig, key: Array) -> dict[str, Array]:
    """Normal numbers, float32. The model is not the base at first."""
    keys = jax.random.split(key)
    found = shapes(options, config).items()
    return {
        name: options["init_std"] * jax.random.normal(k, shape) for k, (name, shape) in zip(keys, found, strict=True)
    }


def bind(
    trainable: dict[str, Array], options: Options, params: Params, config: LlamaConfig, dropout_key: Array | None = None
) -> Bound:
    """The prefix as it is trained; its keys are not rotated."""
    dtype = params.embed_vd.dtype
    k_lbpkh, v_lbpkh = (trainable[name][:, None].astype(dtype) for name in ("keys_lpkh", "values_lpkh"))
    gates_lbn = jnp.ones((k_lbpkh.shape[0], 1, config.num_heads))
    prefix = Prefix(k_bpkh=k_lbpkh, v_bpkh=v_lbpkh, gate_bn=gates_lbn, joint=True)
    layers = range(options["start_layer"], config.num_layers)
    return Bound(adapted=(Adapted(layers, prefix=prefix),))

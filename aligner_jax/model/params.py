"""Parameters of a LLaMA-architecture model: the pytree and the specs of its leaves (shape legend: llama.py)."""

import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from aligner_jax.model.config import LlamaConfig
from aligner_jax.model.quantized import Quantization, Quantized


def described_leaves(tree: Any) -> str:
    """Returns the number of parameters in a tree and their dtypes; of leaves that are no arrays, their classes.

    Their values would fill the screen, as would those of a nested tree.
    """
    leaves = jax.tree.leaves(tree, is_leaf=lambda leaf: isinstance(leaf, Quantized))
    weights = [leaf.values if isinstance(leaf, Quantized) else leaf for leaf in leaves]
    if not all(hasattr(weight, "shape") and hasattr(weight, "dtype") for weight in weights):
        return f"{len(leaves)} leaves of {' and '.join(sorted({type(leaf).__name__ for leaf in leaves}))}"
    dtypes = " and ".join(sorted({str(weight.dtype) for weight in weights}))
    return f"{sum(math.prod(weight.shape) for weight in weights):,} parameters in {dtypes}"


@flax.struct.dataclass
class Layers:
    """Weights of all layers, stacked on a leading layer axis and split by heads, so that nothing is reshaped.

    In a quantized base, every projection is a `Quantized` of the same shape.
    """

    attn_norm_ld: Float[Array, "l d"]
    q_ldnh: Float[Array, "l d n h"] | Quantized
    k_ldkh: Float[Array, "l d k h"] | Quantized
    v_ldkh: Float[Array, "l d k h"] | Quantized
    o_lnhd: Float[Array, "l n h d"] | Quantized
    mlp_norm_ld: Float[Array, "l d"]
    gate_ldf: Float[Array, "l d f"] | Quantized
    up_ldf: Float[Array, "l d f"] | Quantized
    down_lfd: Float[Array, "l f d"] | Quantized
    q_bias_lnh: Float[Array, "l n h"] | None = None
    k_bias_lkh: Float[Array, "l k h"] | None = None
    v_bias_lkh: Float[Array, "l k h"] | None = None
    o_bias_ld: Float[Array, "l d"] | None = None

    def __repr__(self) -> str:
        return f"Layers({described_leaves(self)})"


@flax.struct.dataclass
class Params:
    """All parameters of a base. head_dv is None if the head is tied to the embedding."""

    embed_vd: Float[Array, "v d"]
    layers: Layers
    norm_d: Float[Array, " d"]
    head_dv: Float[Array, "d v"] | None = None

    def __repr__(self) -> str:
        return f"Params({described_leaves(self)})"


@flax.struct.dataclass
class Spec:
    """Declaration of one parameter: shape, logical axes, initializer and dtype."""

    shape: tuple[int, ...] = flax.struct.field(pytree_node=False)
    axes: tuple[str | None, ...] = flax.struct.field(pytree_node=False)
    init: float | None = flax.struct.field(pytree_node=False, default=None)
    """Standard deviation of the initial normal distribution; None for ones (norms), 0.0 for zeros (biases)."""
    dtype: str | None = flax.struct.field(pytree_node=False, default=None)
    """Dtype of the parameter; None for the model's dtype."""
    or_replicated: bool = flax.struct.field(pytree_node=False, default=False)
    """True if a mesh that does not divide the array replicates it, as it does with scales."""


def param_specs(config: LlamaConfig, quantization: Quantization | None = None) -> Params:
    """Returns `Params` with a `Spec` in place of every array: the only declaration of the parameters."""
    d, f, n, k, h = config.d_model, config.d_mlp, config.num_heads, config.num_kv_heads, config.head_dim
    v, l = config.vocab_size, config.num_layers  # noqa: E741
    in_std, out_std = d**-0.5, (2 * l) ** -0.5

    def weight(shape, axes, std, summed=1):
        return _projection((l, *shape), ("layers", *axes), std, summed, quantization)

    def bias(shape, axes, wanted):
        return _spec((l, *shape), ("layers", *axes), 0.0) if wanted else None

    layers = Layers(
        attn_norm_ld=_spec((l, d), ("layers", "norm")),
        q_ldnh=weight((d, n, h), ("embed", "heads", "head_dim"), in_std),
        k_ldkh=weight((d, k, h), ("embed", "kv_heads", "head_dim"), in_std),
        v_ldkh=weight((d, k, h), ("embed", "kv_heads", "head_dim"), in_std),
        o_lnhd=weight((n, h, d), ("heads", "head_dim", "embed"), (n * h) ** -0.5 * out_std, summed=2),
        mlp_norm_ld=_spec((l, d), ("layers", "norm")),
        gate_ldf=weight((d, f), ("embed", "mlp"), in_std),
        up_ldf=weight((d, f), ("embed", "mlp"), in_std),
        down_lfd=weight((f, d), ("mlp", "embed"), f**-0.5 * out_std),
        q_bias_lnh=bias((n, h), ("heads", "head_dim"), config.qkv_bias),
        k_bias_lkh=bias((k, h), ("kv_heads", "head_dim"), config.qkv_bias),
        v_bias_lkh=bias((k, h), ("kv_heads", "head_dim"), config.qkv_bias),
        o_bias_ld=bias((d,), ("norm",), config.o_bias),
    )
    return Params(
        embed_vd=_spec((v, d), ("vocab", "embed"), in_std),
        layers=layers,
        norm_d=_spec((d,), ("norm",)),
        head_dv=None if config.tied_embeddings else _spec((d, v), ("embed", "vocab"), in_std),
    )


def _projection(shape, axes, std: float, summed: int, quantization: Quantization | None) -> Any:
    if quantization is None:
        return _spec(shape, axes, std)
    values_dtype, scales_dtype = quantization.dtypes
    scales_shape = (shape[0], *quantization.scales_shape(shape[1:], summed))
    # Scales are split like their values; axes of size 1 cannot be split.
    scales_axes = tuple(axis if size > 1 else None for axis, size in zip(axes, scales_shape, strict=True))
    scales = _spec(scales_shape, scales_axes, None, scales_dtype, True)
    offsets = scales if quantization.kind == "int4" else None
    return Quantized(_spec(shape, axes, std, values_dtype), scales, offsets)


def _spec(*args) -> Any:
    # Typed Any, since a Spec takes the place of an array in the pytree.
    return Spec(*args)


def is_spec(leaf: object) -> bool:
    """Returns True for a `Spec`; the `is_leaf` of `jax.tree.map` over `param_specs`."""
    return isinstance(leaf, Spec)


def abstract_params(config: LlamaConfig, dtype: str = "float32", quantization: Quantization | None = None) -> Params:
    """Returns `Params` of `jax.ShapeDtypeStruct`s, without allocating arrays."""
    to_abstract = lambda spec: jax.ShapeDtypeStruct(spec.shape, spec.dtype or dtype)  # noqa: E731
    return jax.tree.map(to_abstract, param_specs(config, quantization), is_leaf=is_spec)


def init_params(config: LlamaConfig, key: int | Array = 0, dtype: str = "float32") -> Params:
    """Returns random parameters, for tests and benchmarks.

    Args:
      config: configuration of the model.
      key: a seed, or a `jax.random.key`.
      dtype: dtype of all parameters.
    """
    leaves, treedef = jax.tree.flatten(param_specs(config), is_leaf=is_spec)
    keys = jax.random.split(jax.random.key(key) if isinstance(key, int) else key, len(leaves))

    def init(spec: Spec, key: Array) -> Array:
        if spec.init is None:
            return jnp.ones(spec.shape, dtype)
        return (jax.random.normal(key, spec.shape) * spec.init).astype(dtype)

    return jax.tree.unflatten(treedef, [init(spec, key) for spec, key in zip(leaves, keys, strict=True)])

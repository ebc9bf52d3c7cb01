"""Weighted sums of adapters of one base: sums, differences, negations and interpolations."""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Protocol, cast

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from aligner_jax.errors import InputError
from aligner_jax.model.llama import LlamaConfig, Params
from aligner_jax.model.quantized import Quantized
from aligner_jax.peft.adapter import Adapter, LayerOptions
from aligner_jax.peft.bias import BiasOptions
from aligner_jax.peft.fold import make_fold
from aligner_jax.peft.gated import GatedOptions
from aligner_jax.peft.lora import TARGETS, LoraOptions, Target
from aligner_jax.peft.methods import check_fits, has_strength, with_strength
from aligner_jax.peft.sum import PARTS, parts_of, sum_of

_O_BIAS = "o_bias_ld"
_OF_DIFFERENT_MODELS = "the adapters are of models of different shapes, so they have no sum"

Weighted = Sequence[tuple[Adapter, float]]


class BaseWithParams(Protocol):
    """Fields of a base that constants of Aligners are computed from."""

    @property
    def config(self) -> LlamaConfig: ...
    @property
    def params(self) -> Params: ...


def combine(parts: Weighted, base: BaseWithParams | None = None) -> Adapter:
    """Returns one adapter that adds the weighted sum of what the adapters add to every layer.

    Every adapter computes its part from the base alone. The result depends on the adapters:

    - Adapters of weight 0 are left out, and one adapter that remains keeps its method, with its strength multiplied;
      with weight 1 it is returned as it is. If all weights are 0, the first adapter is returned with strength 0.
    - Biases, Aligners and LLaMA-Adapters of one token, and Aligners with a gate for each token are constants per layer:
      their sum is one "bias". Unless all are biases of the same projection, the base's projections are needed.
    - LoRAs become one LoRA with as many ranks as all of them together, without dropout.
    - Differences of full fine-tuning are added.
    - Others, and different kinds, become a "sum", which holds the adapters side by side.

    Args:
      parts: adapters of the same base, each with its weight; weights may be negative. The adapters' base is not
        checked here, but when they are loaded with it (`artifact.load_adapter`).
      base: the base, not quantized; only needed for the constants of Aligners and LLaMA-Adapters.

    Raises:
      InputError: there are no adapters, a weight is not finite, the base is needed or quantized, the adapters do not
        fit each other or the base, or one has no strength or cannot be added to others.
    """
    if not parts:
        raise InputError("there are no adapters to combine")
    for _, weight in parts:
        if not isinstance(weight, int | float | np.number) or not math.isfinite(weight):
            raise InputError(f"the weight of an adapter is {weight!r}, but should be a finite number")
    if base is not None:
        for adapter, _ in parts:
            check_fits(adapter, base.config)
    kept = [(adapter, weight) for adapter, weight in parts if weight] or [(parts[0][0], 0.0)]
    if len(kept) == 1:
        return _weighted(*kept[0])
    kept = [(part, weight) for adapter, weight in kept for part in parts_of(adapter)]
    methods = {adapter.method for adapter, _ in kept}
    if methods == {"full"}:
        return _full(kept)
    for adapter, _ in kept:
        _check_can_be_added(adapter)
    if methods == {"lora"}:
        return _lora(kept)
    if all(_is_constant(adapter) for adapter, _ in kept):
        return _constants(kept, base)
    return sum_of([_weighted(adapter, weight) for adapter, weight in kept])


def _weighted(adapter: Adapter, weight: float) -> Adapter:
    if weight == 1:
        return adapter
    # A product in bfloat16 would be rounded to 8 bits.
    exact = {name: x.astype(jnp.float32) for name, x in adapter.trainable.items()}
    return with_strength(adapter.replace(trainable=exact), float(weight))


def _check_can_be_added(adapter: Adapter) -> None:
    if not has_strength(adapter):
        raise InputError(
            f"an adapter of method {adapter.method!r} shares the text's softmax, so its effect cannot be added to "
            "others': leave it out"
        )
    if adapter.method not in PARTS:
        raise InputError(f"an adapter of method {adapter.method!r} is only combined with others of this method")


def _is_constant(adapter: Adapter) -> bool:
    options = adapter.options
    return isinstance(options, BiasOptions) or (isinstance(options, GatedOptions) and options.is_constant)


def _constants(parts: Weighted, base: BaseWithParams | None) -> Adapter:
    """Returns the sum of adapters that add a constant to every layer, as a bias."""
    options = [cast(LayerOptions, adapter.options) for adapter, _ in parts]
    start = min(each.start_layer for each in options)
    if all(isinstance(each, BiasOptions) for each in options) and len({str(each["target"]) for each in options}) == 1:
        result, (name,) = dataclasses.replace(options[0], start_layer=start), parts[0][0].trainable
        constants = [(_array(adapter.trainable[name]), weight) for adapter, weight in parts]
    else:
        if base is None:
            raise InputError(
                "the sum of these adapters is a bias that is computed with the base's projections: give the base "
                "(base=…, or --base=PATH)"
            )
        result, name = BiasOptions(start_layer=start, target="o"), _O_BIAS
        constants = [(_of_output(adapter, base), weight) for adapter, weight in parts]
    stops = {each.start_layer + len(constant) for each, (constant, _) in zip(options, constants, strict=True)}
    if len(stops) > 1 or len({constant.shape[1:] for constant, _ in constants}) > 1:
        raise InputError(_OF_DIFFERENT_MODELS)
    total = np.zeros((stops.pop() - start, *constants[0][0].shape[1:]))
    for constant, weight in constants:
        total[len(total) - len(constant) :] += weight * constant
    return Adapter({name: jnp.asarray(total, jnp.float32)}, method="bias", options=result)


def _of_output(adapter: Adapter, base: BaseWithParams) -> Float[np.ndarray, "l d"]:
    """Returns what an adapter adds to the output of the attention of every layer that it adapts."""
    config, options = base.config, adapter.options
    assert isinstance(options, LayerOptions)
    if isinstance(options, BiasOptions):
        if options.target == "o":
            return _array(adapter.trainable[_O_BIAS])
        # Attention weights sum to 1, so a bias of the values passes through the output projection.
        v_lnh = np.repeat(_array(adapter.trainable["v_bias_lkh"]), config.num_heads // config.num_kv_heads, axis=1)
        o_lnhd = (_array(_weight(base.params, "o_lnhd", layer)) for layer in options.adapted(config))
        return np.stack([np.einsum("nh,nhd->d", v_nh, o_nhd) for v_nh, o_nhd in zip(v_lnh, o_lnhd, strict=True)])
    fold, constants = make_fold([adapter], config), []
    for layer in options.adapted(config):
        inputs = {name: np.asarray(_weight(base.params, name, layer)) for name in fold.needs[_O_BIAS]}
        if _O_BIAS in inputs:
            # The base's own bias is no part of the adapter.
            inputs[_O_BIAS] = np.zeros_like(inputs[_O_BIAS])
        constants.append(fold.leaf(_O_BIAS, layer, inputs))
    return np.stack(constants).astype(np.float64)


def _weight(params: Params, name: str, layer: int) -> Array:
    weight = getattr(params.layers, name)
    if isinstance(weight, Quantized):
        raise InputError("the base is quantized, which changes its projections: load it without quantization")
    return weight[layer]


def _lora(parts: Weighted) -> Adapter:
    """Returns one LoRA whose ranks are those of all, with factors of zero where one has no such target."""
    options = [cast(LoraOptions, adapter.options) for adapter, _ in parts]
    targets: tuple[Target, ...] = tuple(target for target in TARGETS if any(target in each.targets for each in options))
    rank = sum(each.rank for each in options)
    trainable = {}
    for target, (side, axis) in itertools.product(targets, (("a", -1), ("b", 1))):
        name, like = next(
            (name, x)
            for adapter, _ in parts
            for name, x in adapter.trainable.items()
            if name.startswith(f"{side}_{target}_")
        )
        factors = []
        for (adapter, weight), each in zip(parts, options, strict=True):
            shape = list(like.shape)
            shape[axis] = each.rank
            x = _array(adapter.trainable[name]) if name in adapter.trainable else np.zeros(shape)
            factors.append(x * (weight * each.scale) if side == "b" else x)
        if len({tuple(np.delete(x.shape, axis)) for x in factors}) > 1:
            raise InputError(_OF_DIFFERENT_MODELS)
        trainable[name] = jnp.asarray(np.concatenate(factors, axis), jnp.float32)
    # alpha = rank makes the scale 1; every part's own scale is in its factors.
    return Adapter(trainable, "lora", LoraOptions(rank=rank, alpha=rank, targets=targets, dropout=0.0))


def _full(parts: Weighted) -> Adapter:
    first = parts[0][0]
    if any(_shapes(each) != _shapes(first) for each, _ in parts):
        raise InputError(_OF_DIFFERENT_MODELS)
    trainable = {}
    for name in first.trainable:
        total = sum(weight * _array(adapter.trainable[name]) for adapter, weight in parts)
        trainable[name] = jnp.asarray(total, jnp.float32)
    return first.replace(trainable=trainable)


def _shapes(adapter: Adapter) -> dict[str, tuple[int, ...]]:
    return {name: x.shape for name, x in adapter.trainable.items()}


def _array(x: Array) -> np.ndarray:
    return np.asarray(x, np.float64)

"""From a leaf of `Layers` to its quantized form, one layer at a time, on the device and split over a mesh as it is."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from aligner_jax.model.config import LlamaConfig
from aligner_jax.model.params import Params, param_specs
from aligner_jax.model.quantized import Quantization, Quantized

_FACTORS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
"""Of the scale that just holds a group's largest number: what is tried. Smaller ones clip it and serve the rest."""


def quantizer(
    config: LlamaConfig, quantization: Quantization, shardings: Params | None = None
) -> Callable[[str, Array], Array | Quantized]:
    """A function of a leaf's name and its array: a projection is quantized and its array deleted, others are kept.

    Args:
      shardings: of the quantized parameters, from `runtime.sharding.param_shardings`; None: what the leaf's leads to.
    """
    layers = param_specs(config, quantization).layers

    def finish(name: str, leaf: Array) -> Array | Quantized:
        spec = getattr(layers, name, None)
        if not isinstance(spec, Quantized):
            return leaf
        split = None if shardings is None else getattr(shardings.layers, name)
        quantized = jax.jit(functools.partial(quantize, spec=spec), out_shardings=split)(leaf)
        # Not donated: a result of another size cannot take its place, and the array lives until the end in any case.
        leaf.delete()
        return quantized

    return finish


def quantize(leaf: Float[Array, "l ..."], spec: Quantized) -> Quantized:
    """The nearest quantized weight: rounded to nearest with scales that depend on all that share them.

    int8: a channel's number furthest from zero becomes ±127. int4: a group's becomes one end of −8 … 7, or beyond it
    and is clipped, by the sign and the one of `_FACTORS` that leave the smallest sum of squared errors.

    Args:
      leaf: a projection of all layers, float32 or bfloat16.
      spec: of what is wanted, from `param_specs`: `Spec`s in place of values and scales.
    """
    of_layer = _int8 if spec.values.dtype == "int8" else _int4
    return jax.lax.map(functools.partial(of_layer, spec=spec), leaf)


def _int8(weight: Array, spec: Quantized) -> Quantized:
    blocks = _Blocks(weight.shape, spec.scales.shape[1:])
    x = blocks.split(weight.astype(jnp.float32))
    largest = blocks.over(jnp.max, jnp.abs(x))
    scales = jnp.where(largest > 0, largest / 127, 1.0)
    return Quantized(blocks.join(jnp.round(x / scales)).astype(jnp.int8), blocks.scales(scales))


def _int4(weight: Array, spec: Quantized) -> Quantized:
    blocks = _Blocks(weight.shape, spec.scales.shape[1:])
    x = blocks.split(weight.astype(jnp.float32))
    lowest, highest = blocks.over(jnp.min, x), blocks.over(jnp.max, x)
    # Divided by −8 the number furthest from zero gets the end of the range that is one longer.
    furthest = jnp.where(-lowest > highest, lowest, highest)
    whole = jnp.where(furthest != 0, furthest / -8, 1.0)

    def rounded(scales):
        return jnp.clip(jnp.round(x / scales), -8, 7)

    def keep_better(best, factor):
        # As they are held: the values are chosen for what they will be multiplied with.
        scales = (whole * factor).astype(jnp.bfloat16).astype(jnp.float32)
        error = blocks.over(jnp.sum, jnp.square(x - rounded(scales) * scales))
        better = error < best[0]
        return (jnp.where(better, error, best[0]), jnp.where(better, scales, best[1])), None

    factors = jnp.asarray([sign * factor for factor in _FACTORS for sign in (1, -1)])
    (_, scales), _ = jax.lax.scan(keep_better, (jnp.full_like(whole, jnp.inf), whole), factors)
    return Quantized(blocks.join(rounded(scales)).astype(jnp.int4), blocks.scales(scales).astype(jnp.bfloat16))


class _Blocks:
    """Every axis of a weight as two: which block, and which number in it."""

    def __init__(self, shape: tuple[int, ...], blocks: tuple[int, ...]) -> None:
        self._shape, self._blocks = shape, blocks
        self._split = tuple(n for size, b in zip(shape, blocks, strict=True) for n in (b, size // b))

    def split(self, x: Array) -> Array:
        return x.reshape(self._split)

    def join(self, x: Array) -> Array:
        return x.reshape(self._shape)

    def over(self, reduce: Callable[..., Array], x: Array) -> Array:
        """The reduction of every block, along axes of size one."""
        return reduce(x, axis=tuple(range(1, x.ndim, 2)), keepdims=True)

    def scales(self, x: Array) -> Array:
        return x.reshape(self._blocks)

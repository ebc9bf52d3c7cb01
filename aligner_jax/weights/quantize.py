"""Quantizes leaves of `Layers` on the device, one layer at a time, and keeps their sharding."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from aligner_jax.errors import InputError
from aligner_jax.model.config import LlamaConfig
from aligner_jax.model.params import Params, param_specs
from aligner_jax.model.quantized import Quantization, Quantized

_FACTORS = (1.0, 0.9, 0.8)
"""Initial scales of the search, relative to the scale that just covers a group's weights. Smaller scales clip the
outermost weights and are more exact for the rest."""
_REFITS = 2


def quantizer(
    config: LlamaConfig, quantization: Quantization, shardings: Params | None = None, *, base: str = "the base"
) -> Callable[[str, Array], Array | Quantized]:
    """Returns a function of a leaf's name and array that quantizes projections and returns other leaves unchanged.

    The function deletes the array of a projection. It raises InputError if a projection holds values that are not
    finite.

    Args:
      shardings: shardings of the quantized parameters, from `runtime.sharding.param_shardings`. None leaves them to the
        compiler, which derives them from the leaf's sharding.
      base: name of the base in error messages.
    """
    layers = param_specs(config, quantization).layers

    def finish(name: str, leaf: Array) -> Array | Quantized:
        spec = getattr(layers, name, None)
        if not isinstance(spec, Quantized):
            return leaf
        split = None if shardings is None else (getattr(shardings.layers, name), None)
        quantized, finite = jax.jit(functools.partial(_quantize_and_check, spec=spec), out_shardings=split)(leaf)
        # Not donated, because the result has another size and cannot reuse the leaf's memory.
        leaf.delete()
        if not finite:
            raise InputError(
                f"leaf {name} of {base} holds numbers that are not finite, or too large to be quantized: it is "
                "damaged, or of a run that diverged"
            )
        return quantized

    return finish


def _quantize_and_check(leaf: Array, spec: Quantized) -> tuple[Quantized, Array]:
    quantized = quantize(leaf, spec)
    # A weight that is not finite makes its group's scale or offset so too, and those are far fewer.
    shared = [each for each in (quantized.scales, quantized.offsets) if each is not None]
    return quantized, functools.reduce(jnp.logical_and, (jnp.isfinite(each).all() for each in shared))


def quantize(leaf: Float[Array, "l ..."], spec: Quantized) -> Quantized:
    """Quantizes a projection of all layers, with rounding to nearest.

    int8: the largest magnitude of a channel becomes ±127. int4: two steps alternate for every group: its weights are
    rounded, and scale and offset are fitted to the rounded values by least squares. Of the results for the initial
    scales in `_FACTORS`, the one with the smallest sum of squared errors is kept.

    Args:
      leaf: projection of all layers, float32 or bfloat16.
      spec: the projection's entry in `param_specs`: `Spec`s in place of values and scales.
    """
    of_layer = _int8 if spec.values.dtype == "int8" else _int4
    return jax.lax.map(functools.partial(of_layer, spec=spec), leaf)


def _int8(weight: Array, spec: Quantized) -> Quantized:
    blocks = _Blocks(weight.shape, spec.scales.shape[1:])
    x = blocks.split(weight.astype(jnp.float32))
    largest = blocks.over(jnp.max, jnp.abs(x))
    # Not `largest > 0`: that is false for NaN too, and would hide it behind a scale of 1.
    scales = jnp.where(largest == 0, 1.0, largest / 127)
    return Quantized(blocks.join(jnp.round(x / scales)).astype(jnp.int8), blocks.scales(scales))


def _int4(weight: Array, spec: Quantized) -> Quantized:
    blocks = _Blocks(weight.shape, spec.scales.shape[1:])
    x = blocks.split(weight.astype(jnp.float32))
    mean = blocks.over(jnp.mean, x)
    lowest, highest = blocks.over(jnp.min, x), blocks.over(jnp.max, x)
    step = jnp.where(highest > lowest, (highest - lowest) / 15, 1.0)

    def rounded(scales, offsets):
        return jnp.clip(jnp.round((x - offsets) / scales), -8, 7)

    def refit(_, scales_offsets):
        values = rounded(*scales_offsets)
        mean_value = blocks.over(jnp.mean, values)
        deviation = values - mean_value
        variance = blocks.over(jnp.sum, jnp.square(deviation))
        # If all values are equal, any scale fits.
        slope = blocks.over(jnp.sum, deviation * (x - mean)) / jnp.where(variance > 0, variance, 1.0)
        scales = _as_held(jnp.where(slope > 0, slope, scales_offsets[0]))
        return scales, _as_held(mean - scales * mean_value)

    def keep_better(best, factor):
        scales = _as_held(step * factor)
        # The middle of −8 … 7 is −1/2.
        offsets = _as_held((highest + lowest) / 2 + scales / 2)
        scales, offsets = jax.lax.fori_loop(0, _REFITS, refit, (scales, offsets))
        error = blocks.over(jnp.sum, jnp.square(x - offsets - rounded(scales, offsets) * scales))
        better = error < best[0]
        pairs = zip((error, scales, offsets), best, strict=True)
        return tuple(jnp.where(better, new, old) for new, old in pairs), None

    nothing = (jnp.full_like(step, jnp.inf), step, mean)
    (_, scales, offsets), _ = jax.lax.scan(keep_better, nothing, jnp.asarray(_FACTORS))
    values = blocks.join(rounded(scales, offsets)).astype(jnp.int4)
    return Quantized(values, *(blocks.scales(each).astype(jnp.bfloat16) for each in (scales, offsets)))


def _as_held(x: Array) -> Array:
    """Rounds to bfloat16, so that values are chosen for the scales and offsets that are stored."""
    return x.astype(jnp.bfloat16).astype(jnp.float32)


class _Blocks:
    """Splits every axis of a weight into two: the block, and the position in it."""

    def __init__(self, shape: tuple[int, ...], blocks: tuple[int, ...]) -> None:
        self._shape, self._blocks = shape, blocks
        self._split = tuple(n for size, b in zip(shape, blocks, strict=True) for n in (b, size // b))

    def split(self, x: Array) -> Array:
        return x.reshape(self._split)

    def join(self, x: Array) -> Array:
        return x.reshape(self._shape)

    def over(self, reduce: Callable[..., Array], x: Array) -> Array:
        """Reduces every block. The reduced axes keep size one."""
        return reduce(x, axis=tuple(range(1, x.ndim, 2)), keepdims=True)

    def scales(self, x: Array) -> Array:
        return x.reshape(self._blocks)

"""From a leaf of `Layers` to its quantized form, one layer at a time, on the device and split over a mesh as it is."""

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
"""Of the range that just holds a group's numbers: where the search begins. Narrower ones clip the outermost ones and
serve the rest."""
_REFITS = 2


def quantizer(
    config: LlamaConfig, quantization: Quantization, shardings: Params | None = None
) -> Callable[[str, Array], Array | Quantized]:
    """A function of a leaf's name and its array: a projection is quantized and its array deleted, others are kept.

    Args:
      shardings: of the quantized parameters, from `runtime.sharding.param_shardings`; None: what the leaf's leads to.

    The function raises InputError for a projection with numbers that are not finite.
    """
    layers = param_specs(config, quantization).layers

    def finish(name: str, leaf: Array) -> Array | Quantized:
        spec = getattr(layers, name, None)
        if not isinstance(spec, Quantized):
            return leaf
        split = None if shardings is None else (getattr(shardings.layers, name), None)
        quantized, finite = jax.jit(functools.partial(_quantize_and_check, spec=spec), out_shardings=split)(leaf)
        # Not donated: a result of another size cannot take its place, and the array lives until the end in any case.
        leaf.delete()
        if not finite:
            raise InputError(
                f"leaf {name} of the base holds numbers that are not finite, or too large to be quantized: it is "
                "damaged, or of a run that diverged"
            )
        return quantized

    return finish


def _quantize_and_check(leaf: Array, spec: Quantized) -> tuple[Quantized, Array]:
    quantized = quantize(leaf, spec)
    # A number that is not finite makes all that its group shares so, which is far less to read.
    shared = [each for each in (quantized.scales, quantized.offsets) if each is not None]
    return quantized, functools.reduce(jnp.logical_and, (jnp.isfinite(each).all() for each in shared))


def quantize(leaf: Float[Array, "l ..."], spec: Quantized) -> Quantized:
    """The nearest quantized weight: rounded to nearest with scales that depend on all that share them.

    int8: a channel's number furthest from zero becomes ±127. int4: of a group's numbers the values are rounded, and
    then scale and offset fitted to them by least squares, in turns; kept is what leaves the smallest sum of squared
    errors of the beginnings in `_FACTORS`.

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
    # Not `largest > 0`, which is false for NaN too, and would make zeros of its channel.
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
        # Where all values are the same, any scale will do.
        slope = blocks.over(jnp.sum, deviation * (x - mean)) / jnp.where(variance > 0, variance, 1.0)
        scales = _as_held(jnp.where(slope > 0, slope, scales_offsets[0]))
        return scales, _as_held(mean - scales * mean_value)

    def keep_better(best, factor):
        scales = _as_held(step * factor)
        # The range of −8 … 7 has its middle at −1/2.
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
    """Rounded to bfloat16: the values are chosen for what they will be multiplied with."""
    return x.astype(jnp.bfloat16).astype(jnp.float32)


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

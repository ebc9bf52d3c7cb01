"""Weights quantized to integers with scales, and products with them (shape legend: llama.py).

This module does not use Qwix's QArray. With float activations, QArray's products first dequantize the whole weight in
the dtype of the scales. Per-channel scales could then neither stay float32 under bfloat16 activations nor be applied
to the product.
"""

import dataclasses
import functools
import math
from typing import Literal

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from aligner_jax.errors import InputError

KINDS = ("int8", "int4")


@dataclasses.dataclass(frozen=True)
class Quantization:
    """Quantization scheme of the layers' projections; hashable.

    Attributes:
      kind: "int8" has one float32 scale per output channel, "int4" one bfloat16 scale and offset per group.
      group_size: neighbours along the summed axes that share a scale and an offset ("int4" only). If it does not divide
        such an axis, groups have the greatest common divisor of the two.
    """

    kind: Literal["int8", "int4"]
    group_size: int = 32

    def __post_init__(self):
        if self.kind not in KINDS:
            raise InputError(f"quantization {self.kind!r} is not one of none, {', '.join(KINDS)}")
        if type(self.group_size) is not int or self.group_size < 2:
            raise InputError(f"group_size is {self.group_size!r}, but should be a whole number of at least 2")

    def __str__(self) -> str:
        return self.kind if self.kind == "int8" else f"{self.kind} in groups of {self.group_size}"

    @property
    def dtypes(self) -> tuple[str, str]:
        """Dtypes of the values and of the scales. Scales of groups in float32 would be a fifth of the model."""
        return ("int8", "float32") if self.kind == "int8" else ("int4", "bfloat16")

    def scales_shape(self, shape: tuple[int, ...], summed: int) -> tuple[int, ...]:
        """Returns the shape of a weight's scales.

        Args:
          shape: shape of the weight; the axes that products sum over come first.
          summed: number of these axes.
        """
        if self.kind == "int8":
            return (1,) * summed + shape[summed:]
        blocks, left = [], self.group_size
        for size in reversed(shape[:summed]):
            block = math.gcd(left, size)
            blocks.insert(0, block)
            # A group extends over the preceding axis only if it covers this one entirely.
            left = left // block if block == size else 1
        return (*(size // block for size, block in zip(shape, blocks, strict=False)), *shape[summed:])


@flax.struct.dataclass
class Quantized:
    """A quantized weight, values · scales + offsets. It is frozen: products have no gradient with respect to it.

    Attributes:
      values: int8 or int4, in the shape of the weight. TPUs pack two int4 into a byte.
      scales: one scale per block of values. The rank is that of `values`, and every axis size divides that of `values`.
      offsets: offsets in the shape of `scales`; None for zero.
    """

    values: Int[Array, "*weight"]
    scales: Float[Array, "*blocks"]
    offsets: Float[Array, "*blocks"] | None = None


type Weight = Array | Quantized
"""A projection of `Layers`."""


def dequantized(weight: Quantized, dtype: jnp.dtype) -> Array:
    """Returns the weight as an array, computed in `dtype`."""
    shape = weight.values.shape
    blocked, spread = [], []
    for size, blocks in zip(shape, weight.scales.shape, strict=True):
        splits = 1 < blocks < size
        blocked += [blocks, size // blocks] if splits else [size]
        spread += [blocks, 1] if splits else [blocks]
    found = weight.values.astype(dtype).reshape(blocked) * weight.scales.astype(dtype).reshape(spread)
    if weight.offsets is not None:
        found += weight.offsets.astype(dtype).reshape(spread)
    return found.reshape(shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def product(equation: str, x: Array, weight: Quantized) -> Array:
    """Returns einsum(equation, x, weight) in x's dtype.

    Per-channel scales without offsets are applied to the product. Otherwise the weight is dequantized just before the
    product. The only residual of the backward pass is the quantized weight, so no policy of `jax.checkpoint` can save a
    dequantized copy.

    Args:
      equation: einsum equation. The result's axes are x's axes that are not summed over, then the weight's, in order.
      x: activations.
      weight: quantized weight.
    """
    _, scales = _channels(equation, weight)
    if scales is None:
        return jnp.einsum(equation, x, dequantized(weight, x.dtype))
    return _scaled(_unscaled(equation, x, weight.values), scales).astype(x.dtype)


def _forward(equation: str, x: Array, weight: Quantized):
    return product(equation, x, weight), weight


def _backward(equation: str, weight: Quantized, dy: Array):
    transposed, scales = _channels(equation, weight)
    if scales is None:
        return jnp.einsum(transposed, dy, dequantized(weight, dy.dtype)), None
    if dy.dtype != jnp.float16:
        return jnp.einsum(transposed, _scaled(dy, scales).astype(dy.dtype), weight.values.astype(dy.dtype)), None
    # Scales are about 1e-3, and gradients times that would underflow. So the largest scale is applied afterwards. That
    # of a channel without weights is 1, and does not count.
    live = jnp.any(weight.values != 0, axis=_summed_axes(equation))
    largest = jnp.max(scales, where=live, initial=jnp.finfo(scales.dtype).tiny)
    relative = jnp.where(live, scales / largest, 0)
    dx = _unscaled(transposed, _scaled(dy, relative).astype(dy.dtype), weight.values)
    return (dx.astype(jnp.float32) * largest).astype(dy.dtype), None


product.defvjp(_forward, _backward)


def _channels(equation: str, weight: Quantized) -> tuple[str, Array | None]:
    """Returns the transposed product's equation, and the per-channel scales; None if scales or offsets vary within."""
    inputs, result = equation.split("->")
    of_x, of_weight = inputs.split(",")
    summed = _summed_axes(equation)
    after_sum = weight.offsets is None and all(weight.scales.shape[axis] == 1 for axis in summed)
    channels = [size for axis, size in enumerate(weight.scales.shape) if axis not in summed]
    return f"{result},{of_weight}->{of_x}", weight.scales.reshape(channels) if after_sum else None


def _summed_axes(equation: str) -> tuple[int, ...]:
    """Returns the axes of the weight that the product sums over."""
    of_x, of_weight = equation.split("->")[0].split(",")
    return tuple(index for index, axis in enumerate(of_weight) if axis in of_x)


def _unscaled(equation: str, x: Array, values: Array) -> Array:
    """Returns the product with a weight's values: in float32 for float16 activations, which it would overflow."""
    wide = jnp.float32 if x.dtype == jnp.float16 else None
    return jnp.einsum(equation, x, values.astype(x.dtype), preferred_element_type=wide)


def _scaled(y: Array, scales: Array) -> Array:
    """Multiplies y by the scales of its last axes, in float32."""
    scales = scales.reshape((1,) * (y.ndim - scales.ndim) + scales.shape)
    return y.astype(jnp.float32) * scales

"""Weights held as whole numbers and scales, and products with them (shape legend: llama.py).

Not Qwix's QArray: beside float activations its products dequantize the whole weight first, in the dtype of the scales,
so that per-channel scales could neither stay float32 under bfloat16 activations nor be applied to the product.
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
    """How the projections of the layers are held; hashable.

    Attributes:
      kind: "int8" has one float32 scale an output channel, "int4" one bfloat16 scale and offset a group.
      group_size: of "int4": so many neighbours along the axes that the product sums over share both; fewer, their
        greatest common divisor, where it does not divide such an axis.
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
        """Of the values, and of the scales: with group-wise ones a float32 would be a fifth of the model."""
        return ("int8", "float32") if self.kind == "int8" else ("int4", "bfloat16")

    def scales_shape(self, shape: tuple[int, ...], summed: int) -> tuple[int, ...]:
        """Shape of the scales of a weight [*axes that products sum over (`summed` of them), *other axes]."""
        if self.kind == "int8":
            return (1,) * summed + shape[summed:]
        blocks, left = [], self.group_size
        for size in reversed(shape[:summed]):
            block = math.gcd(left, size)
            blocks.insert(0, block)
            # A group goes on over the axis before only where it takes this one whole.
            left = left // block if block == size else 1
        return (*(size // block for size, block in zip(shape, blocks, strict=False)), *shape[summed:])


@flax.struct.dataclass
class Quantized:
    """A weight as values · scales + offsets.

    Frozen: products have a gradient for what is multiplied with it, and it has none.

    Attributes:
      values: int8 or int4, of the weight's shape. int4 is two a byte on TPUs.
      scales: of the same rank, each for a block of values: every axis's size divides that of the values.
      offsets: as scales; None: zero.
    """

    values: Int[Array, "*weight"]
    scales: Float[Array, "*blocks"]
    offsets: Float[Array, "*blocks"] | None = None


type Weight = Array | Quantized
"""A leaf of `Layers` that is multiplied with."""


def dequantized(weight: Quantized, dtype: jnp.dtype) -> Array:
    """The weight as an array of this dtype, computed in it."""
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
    """einsum(equation, x, weight) in x's dtype.

    Scales that are one for all that a sum runs over, and no offsets, multiply the sum; otherwise the weight is made
    just before the product. What the backward pass needs is the weight as it is held, so no policy of `jax.checkpoint`
    can keep another form of it.

    Args:
      equation: the result's axes are x's that are not summed over, then the weight's, each in their order.
    """
    _, scales = _channels(equation, weight)
    if scales is None:
        return jnp.einsum(equation, x, dequantized(weight, x.dtype))
    return _scaled(jnp.einsum(equation, x, weight.values.astype(x.dtype)), scales)


def _forward(equation: str, x: Array, weight: Quantized):
    return product(equation, x, weight), weight


def _backward(equation: str, weight: Quantized, dy: Array):
    transposed, scales = _channels(equation, weight)
    if scales is None:
        return jnp.einsum(transposed, dy, dequantized(weight, dy.dtype)), None
    return jnp.einsum(transposed, _scaled(dy, scales), weight.values.astype(dy.dtype)), None


product.defvjp(_forward, _backward)


def _channels(equation: str, weight: Quantized) -> tuple[str, Array | None]:
    """The equation of the transposed product, and the scales of the output channels if that is all there is."""
    inputs, result = equation.split("->")
    of_x, of_weight = inputs.split(",")
    sizes = dict(zip(of_weight, weight.scales.shape, strict=True))
    after_sum = weight.offsets is None and all(size == 1 for axis, size in sizes.items() if axis in of_x)
    channels = [size for axis, size in sizes.items() if axis not in of_x]
    return f"{result},{of_weight}->{of_x}", weight.scales.reshape(channels) if after_sum else None


def _scaled(y: Array, scales: Array) -> Array:
    """y times the scales of its last axes, in float32 and rounded once."""
    scales = scales.reshape((1,) * (y.ndim - scales.ndim) + scales.shape)
    return (y.astype(jnp.float32) * scales).astype(y.dtype)

"""Refuses weights that are not finite, in the arrays of readers and quantizers, or not in float16."""

import jax
import jax.numpy as jnp
import numpy as np

from aligner_jax.errors import InputError

# Bits of +infinity, by dtype.
_INFINITY = {
    np.dtype(np.float64): 0x7FF0_0000_0000_0000,
    np.dtype(np.float32): 0x7F80_0000,
    np.dtype(np.float16): 0x7C00,
    np.dtype(jnp.bfloat16): 0x7F80,
}


def check_finite(numbers: np.ndarray, what: str) -> None:
    """Refuses NaN and infinities.

    Args:
      numbers: floating-point array of any shape.
      what: file and tensor; the error begins with it.

    Raises:
      InputError: a value is NaN or infinite.
    """
    if not all_finite(numbers):
        raise InputError(f"{what} holds numbers that are not finite: it is damaged, or of a run that diverged")


def all_finite(numbers: np.ndarray) -> bool:
    """Returns True if no value is NaN or infinite. Takes about as long as reading the array twice."""
    if not numbers.size:
        return True
    infinity = _INFINITY.get(numbers.dtype)
    if infinity is None:
        return bool(np.isfinite(numbers).all())
    # Infinity and NaN have the largest bit patterns of their sign. NumPy finds the largest integer as fast as memory is
    # read, but it compares float16 values one by one and cannot compare bfloat16 at all.
    size = numbers.dtype.itemsize
    largest_positive = int(numbers.view(f"i{size}").max())
    largest_negative = int(numbers.view(f"u{size}").max())
    return largest_positive < infinity and largest_negative < infinity | 1 << 8 * size - 1


def check_fits_float16(leaf: jax.Array, name: str) -> None:
    """Refuses a leaf with values that float16 rounds to infinity.

    Args:
      leaf: float32 array of any shape and sharding.
      name: name of the leaf, for the error.

    Raises:
      InputError: a value is too large.
    """
    if not _fits_float16(leaf):
        largest = float(jnp.finfo(jnp.float16).max)
        raise InputError(
            f"leaf {name} of the base holds numbers beyond ±{largest:,.0f}, which float16 cannot hold: load it in "
            "float32 (--dtype=float32 or config.base.dtype)"
        )


@jax.jit
def _fits_float16(leaf: jax.Array) -> jax.Array:
    return jnp.isfinite(leaf.astype(jnp.float16)).all()

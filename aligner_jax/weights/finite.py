"""Refuses weights that are not finite, as stored or in the dtype that they are rounded to."""

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


def rounded(numbers: np.ndarray, dtype: np.dtype, what: str) -> np.ndarray:
    """Returns weights in another dtype, rounded to nearest even; those in float16 must be exact.

    Args:
      numbers: finite floating-point array of any shape.
      what: file and tensor; the error begins with it.

    Raises:
      InputError: a value overflows, or is not exact in float16.
    """
    if numbers.dtype == dtype:
        return numbers
    # A float32 beyond the largest bfloat16 overflows to infinity, which is refused below.
    with np.errstate(over="ignore"):
        result = numbers.astype(dtype)
    # Fingerprints are of weights in bfloat16, which other weights than the stored ones might round to.
    exact = dtype != np.float16 or np.array_equal(result.astype(np.float32), numbers.astype(np.float32))
    if not exact or not all_finite(result):
        exactly = "" if exact else " exactly"
        raise InputError(f"{what} holds numbers that {dtype} cannot hold{exactly}; load it in float32")
    return result


def check_fits_float16(leaf: jax.Array, what: str) -> None:
    """Refuses a leaf with values that float16 rounds to infinity.

    Args:
      leaf: float32 array of any shape and sharding.
      what: leaf and path of the base; the error begins with it.

    Raises:
      InputError: a value is too large.
    """
    if not _fits_float16(leaf):
        largest = float(jnp.finfo(jnp.float16).max)
        raise InputError(
            f"{what} holds numbers beyond ±{largest:,.0f}, which float16 cannot hold: load it in float32 "
            "(--dtype=float32 or config.base.dtype)"
        )


@jax.jit
def _fits_float16(leaf: jax.Array) -> jax.Array:
    return jnp.isfinite(leaf.astype(jnp.float16)).all()

"""Refusal of weights that are not finite, in the arrays that readers and quantizers pass on."""

import jax.numpy as jnp
import numpy as np

from aligner_jax.errors import InputError

# The bits of infinity, by dtype.
_INFINITY = {
    np.dtype(np.float64): 0x7FF0_0000_0000_0000,
    np.dtype(np.float32): 0x7F80_0000,
    np.dtype(np.float16): 0x7C00,
    np.dtype(jnp.bfloat16): 0x7F80,
}


def check_finite(numbers: np.ndarray, what: str) -> None:
    """Refuses NaN and infinities.

    Args:
      numbers: floating-point, of any shape.
      what: the file and the tensor; the error begins with it.

    Raises:
      InputError: a number is not finite.
    """
    if not all_finite(numbers):
        raise InputError(f"{what} holds numbers that are not finite: it is damaged, or of a run that diverged")


def all_finite(numbers: np.ndarray) -> bool:
    """Returns True if no number is NaN or infinite, in about the time that reading them twice takes."""
    if not numbers.size:
        return True
    infinity = _INFINITY.get(numbers.dtype)
    if infinity is None:
        return bool(np.isfinite(numbers).all())
    # Infinity and NaN have the largest bits of all numbers of their sign. NumPy finds the largest integer as fast as
    # memory is read, but compares halves one by one and cannot compare bfloat16 at all.
    size = numbers.dtype.itemsize
    largest_positive = int(numbers.view(f"i{size}").max())
    largest_negative = int(numbers.view(f"u{size}").max())
    return largest_positive < infinity and largest_negative < infinity | 1 << 8 * size - 1

"""Refusal of weights that are not finite, in the arrays that readers and quantizers pass on."""

import jax.numpy as jnp
import numpy as np

from aligner_jax.errors import InputError

_BFLOAT16 = np.dtype(jnp.bfloat16)


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
    """Returns True if no number is NaN or infinite, in about the time that reading them takes."""
    if not numbers.size:
        return True
    if numbers.dtype == _BFLOAT16:
        # NumPy knows nothing of bfloat16; without its sign the exponent of NaN and infinity is above all others.
        return int((numbers.view(np.uint16) & 0x7FFF).max()) < 0x7F80
    # The extremes are NaN where any number is.
    return bool(np.isfinite(numbers.max()) and np.isfinite(numbers.min()))

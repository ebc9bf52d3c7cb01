"""Refusal of weights that are not finite, in the arrays that readers and quantizers pass on."""

import numpy as np

from aligner_jax.errors import InputError


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
    """Returns True if no number is NaN or infinite, in less than the time that reading them takes.

    NaN and infinities are the largest of their sign where the bits are taken for an integer, and NumPy finds the
    largest integer at the speed of memory: a float16, or a bfloat16 that it knows nothing of, too.
    """
    if not numbers.size:
        return True
    size = numbers.dtype.itemsize
    infinity = int(np.array(np.inf, numbers.dtype).view(f"i{size}"))
    negative = infinity + 2 ** (8 * size - 1)
    return int(numbers.view(f"i{size}").max()) < infinity and int(numbers.view(f"u{size}").max()) < negative

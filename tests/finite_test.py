"""What is finite, in every dtype that weights are stored in."""

import ml_dtypes
import numpy as np
import pytest

from aligner_jax.errors import InputError
from aligner_jax.weights.finite import all_finite, check_finite


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16, np.float64])
def test_only_nan_and_infinities_are_not_finite(dtype):
    numbers = np.random.default_rng(0).standard_normal((3, 50)).astype(dtype)
    largest, smallest = ml_dtypes.finfo(dtype).max, ml_dtypes.finfo(dtype).smallest_subnormal
    for value in (largest, -largest, smallest, -smallest, np.array(0, dtype), np.array(-0.0, dtype)):
        numbers[1, 7] = value
        assert all_finite(numbers), value
        assert all_finite(numbers[::2, ::-1])
    for value in (np.inf, -np.inf, np.nan, -np.nan):
        numbers[1, 7] = value
        assert not all_finite(numbers), value
        assert not all_finite(numbers[1:, ::-1])
        assert not all_finite(np.array(value, dtype))
        with pytest.raises(InputError, match=r"^a\.gguf: tensor x holds numbers that are not finite"):
            check_finite(numbers, "a.gguf: tensor x")
    assert all_finite(np.zeros((0, 3), dtype))

"""NaN and infinity among the values of every dtype that readers return, and values that rounding changes too much."""

import jax.numpy as jnp
import numpy as np
import pytest

from aligner_jax.errors import InputError
from aligner_jax.weights.finite import all_finite, check_finite, rounded


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_every_number_of_two_bytes_is_judged_as_by_its_value(dtype):
    numbers = np.arange(2**16, dtype=np.uint16).view(dtype)
    with np.errstate(invalid="ignore"):
        finite = np.isfinite(numbers.astype(np.float32))
    assert [all_finite(numbers[i : i + 1]) for i in range(2**16)] == finite.tolist()
    assert all_finite(numbers[finite])


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float32, np.float64, jnp.float8_e5m2])
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_one_number_that_is_not_finite_is_noticed_wherever_it_is(dtype, bad):
    largest = jnp.finfo(dtype).max
    for at in range(6):
        numbers = np.array([1, -1, largest, -largest, 0, -0.0], dtype).reshape(2, 3)
        assert all_finite(numbers)
        numbers[at // 3, at % 3] = bad
        assert not all_finite(numbers)


def test_nothing_is_finite():
    assert all_finite(np.zeros((0, 3), np.float32))


def test_the_error_begins_with_the_tensor():
    with pytest.raises(InputError, match=r"^model\.gguf: tensor a holds numbers that are not finite"):
        check_finite(np.array([np.inf], np.float32), "model.gguf: tensor a")


@pytest.mark.parametrize(
    ("value", "dtype", "refused"),
    [
        (1 + 2**-8, jnp.bfloat16, None),
        (3.4e38, jnp.bfloat16, "bfloat16 cannot hold"),
        (1 + 2**-10, np.float16, None),
        (1 + 2**-11, np.float16, "float16 cannot hold exactly"),
        (65_536, np.float16, "float16 cannot hold exactly"),
        (3.4e38, np.float32, None),
    ],
)
def test_rounding_neither_overflows_nor_changes_weights_in_float16(value, dtype, refused):
    numbers = np.array([0, value], np.float32)
    if refused is None:
        np.testing.assert_array_equal(rounded(numbers, np.dtype(dtype), "a"), numbers.astype(dtype))
        return
    with pytest.raises(InputError, match=rf"^model\.gguf: tensor a holds numbers that {refused}; load it in float32$"):
        rounded(numbers, np.dtype(dtype), "model.gguf: tensor a")

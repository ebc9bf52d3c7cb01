"""NaN and infinity among the values of every dtype that readers return."""

import jax.numpy as jnp
import numpy as np
import pytest

from aligner_jax.errors import InputError
from aligner_jax.weights.finite import all_finite, check_finite


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

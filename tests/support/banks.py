"""Checks of banks and of the adapters in them."""

from collections.abc import Callable

import numpy as np
import pytest

from aligner_jax.errors import InputError
from aligner_jax.peft import Adapter
from aligner_jax.peft.stored import StoredAdapter


def check_equal(stored: StoredAdapter, adapter: Adapter) -> None:
    assert (stored.method, stored.options) == (adapter.method, adapter.options)
    arrays = stored.read()
    assert arrays.keys() == adapter.trainable.keys()
    for name, array in arrays.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, np.asarray(adapter.trainable[name], np.float32))


def value_of(stored: StoredAdapter) -> float:
    """Returns the only value of a `filled` adapter."""
    (value,) = {value for array in stored.read().values() for value in array.reshape(-1).tolist()}
    return value


def refusal(function: Callable, *args: object, **more: object) -> str:
    with pytest.raises(InputError) as caught:
        function(*args, **more)
    return str(caught.value)

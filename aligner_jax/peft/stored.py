"""Adapters whose numbers are read when they are needed, so that any number of them can be known."""

import dataclasses
from collections.abc import Callable, Hashable, Mapping

import numpy as np

from aligner_jax.peft.adapter import Adapter, Options


@dataclasses.dataclass(frozen=True)
class StoredAdapter:
    """An adapter in a bank, in a file or in memory.

    Attributes:
      key: identifies the numbers: adapters with one key have the same.
      method: a key of `METHODS`.
      options: complete options of the method.
      read: returns the trained arrays by name, float32.
    """

    key: Hashable
    method: str
    options: Options
    read: Callable[[], Mapping[str, np.ndarray]]

    @classmethod
    def of(cls, adapter: Adapter, key: Hashable) -> "StoredAdapter":
        """Returns an adapter that is in memory."""
        return cls(key, adapter.method, adapter.options, lambda: adapter.trainable)  # pyright: ignore[reportArgumentType]

"""Kinds of adapters in a bank: those of one method with the same options."""

import dataclasses
import functools
import hashlib
import json
import math

import numpy as np
from jaxtyping import Float

from aligner_jax.errors import InputError
from aligner_jax.files.json_text import parse_object
from aligner_jax.model.config import LlamaConfig
from aligner_jax.model.params import abstract_params
from aligner_jax.peft.adapter import Adapter, Options
from aligner_jax.peft.bank_index import LONGEST_TEXT
from aligner_jax.peft.bank_numbers import DTYPE
from aligner_jax.peft.methods import METHODS, complete_options
from aligner_jax.peft.row_adapters import capacity_of
from aligner_jax.peft.shapes import check_shapes
from aligner_jax.weights.finite import check_finite


@dataclasses.dataclass(frozen=True)
class Kind:
    """Method and options of adapters over one base.

    Attributes:
      method: a key of `METHODS`.
      options: complete options of the method.
      text: the options as JSON.
      shapes: shapes of the arrays by name, sorted as a bank's file has them.
    """

    method: str
    options: Options
    text: str
    shapes: dict[str, tuple[int, ...]]

    @classmethod
    def of(cls, method: str, options: Options, config: LlamaConfig) -> "Kind":
        """Returns the kind of adapters to register.

        Raises:
          InputError: the options do not fit the base, are too long, or rows of a batch cannot have different adapters
            of this method.
        """
        options.check(config)
        capacity_of(method, options, abstract_params(config), config)
        text = json.dumps(options.as_dict(), sort_keys=True)
        if len(text) > LONGEST_TEXT:
            raise InputError(f"its options have {len(text):,} characters, and a bank takes up to {LONGEST_TEXT:,}")
        return cls(method, options, text, _shapes(method, options, config))

    @classmethod
    def parse(cls, method: str, text: str, config: LlamaConfig, where: str) -> "Kind":
        """Returns a kind that an index records. Raises InputError, which begins with `where`, if it is damaged."""
        try:
            options = complete_options(method, config, parse_object(text, "options"))
        except InputError as error:
            raise InputError(f"{where} cannot be used: {error}") from None
        return cls(method, options, text, _shapes(method, options, config))

    @functools.cached_property
    def size(self) -> int:
        """Count of numbers of an adapter."""
        return sum(map(math.prod, self.shapes.values()))

    def flat(self, name: str, adapter: Adapter, config: LlamaConfig) -> bytes:
        """Returns the numbers of an adapter of this kind.

        Raises:
          InputError: its arrays do not fit the base or are not finite; the message begins with `name`.
        """
        arrays = {key: np.asarray(x, DTYPE) for key, x in adapter.trainable.items()}
        if {key: x.shape for key, x in arrays.items()} != self.shapes:
            check_shapes(f"adapter {name!r}", arrays, self.method, self.options, config)
        numbers = np.concatenate([arrays[key].reshape(-1) for key in self.shapes])
        check_finite(numbers, f"adapter {name!r}")
        return numbers.tobytes()

    def arrays(self, flat: Float[np.ndarray, " n"]) -> dict[str, np.ndarray]:
        """Returns views of the numbers of an adapter, by name."""
        arrays, start = {}, 0
        for name, shape in self.shapes.items():
            stop = start + math.prod(shape)
            arrays[name], start = flat[start:stop].reshape(shape), stop
        return arrays

    def digest(self, numbers: bytes | np.ndarray) -> bytes:
        """Returns the SHA-256 of method, options and numbers."""
        sha256 = hashlib.sha256(f"{self.method}\0{self.text}\0".encode())
        sha256.update(numbers)
        return sha256.digest()


def _shapes(method: str, options: Options, config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    return dict(sorted(METHODS[method].shapes(options, config).items()))

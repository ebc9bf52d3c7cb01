"""Model names: the base, an adapter, its strength, and sums of adapters."""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from aligner_jax.data.prompt_format import PromptFormat
from aligner_jax.peft.stored import StoredAdapter
from aligner_jax.serving.adapters import Adapters
from aligner_jax.serving.errors import ApiError

_LARGEST = 1e6


class Models:
    """The models of a server: the base's own name, `NAME`, `NAME@0.5` and sums such as `A@0.5+B@2`.

    Attributes:
      base_name: name of the base.
      adapters: the adapters.
    """

    def __init__(self, base_name: str, adapters: Adapters) -> None:
        self.base_name, self.adapters = base_name, adapters

    def weights(self, model: str) -> dict[str, float]:
        """Returns the strength of each adapter of a model by name; empty for the base.

        Raises:
          ApiError: it is not a model's name. Adapters need not exist.
        """
        if model == self.base_name:
            return {}
        weights: dict[str, float] = {}
        for term in model.split("+"):
            name, at, strength = term.partition("@")
            if name in weights:
                raise ApiError(400, f"the model {model!r} has the adapter {name!r} twice", param="model")
            weights[name] = _strength(model, strength) if at else 1.0
        return weights

    def stored(self, model: str) -> tuple[tuple[StoredAdapter, float], ...]:
        """Returns the adapters of a model with their strengths. May read files. Raises ApiError if there is none."""
        weights = self.weights(model)
        return tuple((self._known(self.adapters.get, name, model), weight) for name, weight in weights.items())

    def recorded(self, model: str) -> Mapping[str, "Recorded"]:
        """Returns the adapters of a model with their formats, by names for messages; reads and errors as `stored`."""
        return {
            f"the adapter {name}": Recorded(*self._known(self.adapters.get_with_format, name, model), weight)
            for name, weight in self.weights(model).items()
        }

    def _known[T](self, read: Callable[[str], T], name: str, model: str) -> T:
        try:
            return read(name)
        except KeyError:
            raise unknown_model(model) from None


class Recorded(NamedTuple):
    """An adapter of a model, with its prompt format and its strength."""

    adapter: StoredAdapter
    prompt_format: PromptFormat | None
    weight: float


def unknown_model(model: str) -> ApiError:
    """Returns the error of a model that does not exist."""
    return ApiError(404, f"The model {model[:200]!r} does not exist", param="model", code="model_not_found")


def _strength(model: str, text: str) -> float:
    try:
        strength = float(text)
    except ValueError:
        strength = math.nan
    if not abs(strength) <= _LARGEST:
        raise ApiError(400, f"the model {model!r} has the strength {text!r}, which is not a number", param="model")
    return strength

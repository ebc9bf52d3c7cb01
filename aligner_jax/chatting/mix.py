"""Weighted sums of adapters by name, as users write them: `a`, `a@0.5`, `a@0.5 b`."""

import dataclasses
import math

from aligner_jax.errors import InputError

LARGEST = 1e6
"""Largest absolute value of a strength."""


@dataclasses.dataclass(frozen=True)
class Mix:
    """A weighted sum of adapters; without any, the base.

    Attributes:
      terms: name and weight of every adapter.
      strength: multiplies all weights.
    """

    terms: tuple[tuple[str, float], ...] = ()
    strength: float = 1.0

    @property
    def weights(self) -> tuple[tuple[str, float], ...]:
        """Name and strength of every adapter."""
        return tuple((name, weight * self.strength) for name, weight in self.terms)

    @property
    def model(self) -> str:
        """Name as servers of this project take it: "a@0.5+b"; "" for the base."""
        return "+".join(name if weight == 1 else f"{name}@{_shown(weight)}" for name, weight in self.weights)

    def __str__(self) -> str:
        return self.model or "base"


def _shown(weight: float) -> str:
    # Exact, and without the + of an exponent, which separates adapters.
    return repr(float(weight)).removesuffix(".0")


def parse_mix(text: str) -> Mix:
    """Returns the sum of adapters that are separated by white space, each with its strength behind an @.

    Raises:
      InputError: there is no adapter, one is named twice, or a strength is not a number.
    """
    terms: dict[str, float] = {}
    for word in text.split():
        name, at, strength = word.rpartition("@")
        name, weight = (name, parse_strength(strength)) if at else (word, 1.0)
        if not name:
            raise InputError(f"{word!r} names no adapter; a sum is written like: a@0.5 b")
        if name in terms:
            raise InputError(f"the sum has the adapter {name!r} twice")
        terms[name] = weight
    if not terms:
        raise InputError("name the adapters to sum, like: a@0.5 b")
    return Mix(tuple(terms.items()))


def parse_strength(text: str) -> float:
    """Returns a strength. Raises InputError if it is not a number, or too large."""
    try:
        strength = float(text)
    except ValueError:
        strength = math.nan
    if not abs(strength) <= LARGEST:
        raise InputError(f"the strength {text!r} is not a number between {-LARGEST:g} and {LARGEST:g}")
    return strength

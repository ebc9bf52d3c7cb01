"""Compares the arrays of two adapters, entry by entry and in direction; the base is not needed."""

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from aligner_jax.peft import Adapter
from aligner_jax.peft.lora import LoraOptions

UPDATES = "weight updates"
"""Name under which LoRA's products A B are compared. Its factors are unique only up to an invertible matrix."""


@dataclasses.dataclass(frozen=True)
class Shared:
    """Comparison of one array of two adapters.

    Attributes:
      array: name of the array in `Adapter.trainable`, or `UPDATES`.
      entries: number of entries that were compared.
      identical: share of entries that are bit-equal; None for `UPDATES`, which are not stored.
      by_chance: the same share after one array is rolled by one entry: the share of unrelated entries of this kind.
      cosine: cosine of the two arrays as vectors; None if one is zero.
    """

    array: str
    entries: int
    identical: float | None
    by_chance: float | None
    cosine: float | None


def compare(first: Adapter, second: Adapter) -> list[Shared]:
    """Compares all arrays that have the same name, shape and dtype in both adapters, and LoRA's updates.

    Adapters of one method may have different numbers of shared tokens (tokens_pd); the first ones, which both have, are
    compared.
    """
    found = []
    for name, x, y in _common(first, second):
        by_chance = _identical(x, np.roll(y, 1, axis=-1)) if x.shape[-1] > 1 else None
        found.append(Shared(name, x.size, _identical(x, y), by_chance, cosine(x, y)))
    updates = _updates(first, second)
    return found if updates is None else [*found, updates]


def cosine(x: np.ndarray, y: np.ndarray) -> float | None:
    """Returns the cosine of two arrays of one shape as vectors, in float64; None if one is zero."""
    x, y = x.astype(np.float64).ravel(), y.astype(np.float64).ravel()
    norms = np.linalg.norm(x) * np.linalg.norm(y)
    return float(x @ y / norms) if norms else None


def _common(first: Adapter, second: Adapter) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    for name, leaf in first.trainable.items():
        if name not in second.trainable:
            continue
        x, y = np.asarray(leaf), np.asarray(second.trainable[name])
        if name == "tokens_pd" and first.method == second.method and x.shape[1] == y.shape[1]:
            x, y = (z[: min(len(x), len(y))] for z in (x, y))
        if x.shape == y.shape and x.dtype == y.dtype:
            yield name, x, y


def _identical(x: np.ndarray, y: np.ndarray) -> float:
    bits = np.dtype(f"u{x.dtype.itemsize}")
    return float(np.mean(np.ascontiguousarray(x).view(bits) == np.ascontiguousarray(y).view(bits)))


def _updates(first: Adapter, second: Adapter) -> Shared | None:
    """Compares Tr(ΔWᵀ ΔW') over all common targets, from the factors, without computing the products."""
    ours, theirs = factors(first), factors(second)
    products, entries = np.zeros(3), 0
    # In the order of the targets: that of a set differs between processes, and so would the sums' last digits.
    for name in (name for name in ours if name in theirs):
        (a, b), (c, d) = ours[name], theirs[name]
        if a.shape[:2] != c.shape[:2] or b.shape[2] != d.shape[2]:
            return None
        entries += a.shape[0] * a.shape[1] * b.shape[2]
        products += [_inner(a, b, c, d), _inner(a, b, a, b), _inner(c, d, c, d)]
    if not entries:
        return None
    norms = np.sqrt(products[1] * products[2])
    return Shared(UPDATES, entries, None, None, float(products[0] / norms) if norms else None)


def _inner(a_lir, b_lro, c_lis, d_lso) -> float:
    """Returns the inner product of A B and C D, summed over layers."""
    return float(np.sum(np.einsum("lir,lis->lrs", a_lir, c_lis) * np.einsum("lro,lso->lrs", b_lro, d_lso)))


def factors(adapter: Adapter) -> dict[str, tuple[Float[np.ndarray, "l i r"], Float[np.ndarray, "l r o"]]]:
    """Returns LoRA's factors A and B by target, in float64; empty for other methods."""
    if not isinstance(adapter.options, LoraOptions):
        return {}
    found = {}
    for target in adapter.options.targets:
        (a,), (b,) = (
            [np.asarray(x, np.float64) for name, x in adapter.trainable.items() if name.startswith(f"{side}_{target}_")]
            for side in "ab"
        )
        found[target] = a.reshape(len(a), -1, a.shape[-1]), b.reshape(*b.shape[:2], -1)
    return found

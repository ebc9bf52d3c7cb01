"""Weighted sums of held adapters: each row takes any of them, by arrays whose shapes do not depend on the choice."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from aligner_jax.errors import InputError
from aligner_jax.peft.row_adapters import Capacity, RowAdapters

MOST_IN_A_SUM = 4
"""Adapters that a row can sum."""


@dataclasses.dataclass(frozen=True)
class Term:
    """One adapter of a row.

    Attributes:
      place: index of the adapter among the held ones.
      weight: factor of its effect.
      capacity: capacity that it needs.
    """

    place: int
    weight: float
    capacity: Capacity


@flax.struct.dataclass
class Sums:
    """Held adapters that the rows take, with their weights.

    Attributes:
      places_bm, weights_bm: the adapters of each row; unused ones have weight 0.
      token_bp: for each token of a row, index into the tokens of all held adapters.
      token_weight_bp: weight of the token's adapter; 0 if the token is not used.
      token_term_bp: index of the token's adapter among those of the row.
      rank_br, rank_weight_br: the same for ranks.
    """

    places_bm: Int[Array, "b m"]
    weights_bm: Float[Array, "b m"]
    token_bp: Int[Array, "b p"]
    token_weight_bp: Float[Array, "b p"]
    token_term_bp: Int[Array, "b p"]
    rank_br: Int[Array, "b r"]
    rank_weight_br: Float[Array, "b r"]

    @classmethod
    def of(cls, rows: Sequence[Sequence[Term]], capacity: Capacity) -> "Sums":
        """Returns NumPy arrays for these rows. Every row fits, see `check_fits`."""
        b, m = len(rows), MOST_IN_A_SUM
        places, weights = np.zeros((b, m), np.int32), np.zeros((b, m), np.float32)
        tokens, ranks = _Places(b, capacity.tokens), _Places(b, capacity.rank)
        for row, terms in enumerate(rows):
            for index, term in enumerate(terms):
                places[row, index], weights[row, index] = term.place, term.weight
                tokens.add(row, term.place * capacity.tokens, term.capacity.tokens, term.weight, index)
                ranks.add(row, term.place * capacity.rank, term.capacity.rank, term.weight, index)
        return cls(places, weights, tokens.index, tokens.weight, tokens.term, ranks.index, ranks.weight)  # pyright: ignore[reportArgumentType]


def check_fits(terms: Sequence[Capacity], capacity: Capacity) -> None:
    """Refuses a sum that needs more than the capacity of a row. Raises InputError."""
    if len(terms) > MOST_IN_A_SUM:
        raise InputError(f"{len(terms)} adapters are to be summed, but a row can have {MOST_IN_A_SUM}")
    for name in ("tokens", "rank"):
        needed, room = sum(getattr(term, name) for term in terms), getattr(capacity, name)
        if needed > room:
            raise InputError(f"the adapters need {name} {needed} in a row, but the engine has room for {room}")
    for name in ("factors", "biases"):
        for field in sorted({field for term in terms for field in getattr(term, name)} - {*getattr(capacity, name)}):
            raise InputError(f"the adapters change {field}, and the engine has no room for that")


class _Places:
    """Sources of the tokens or ranks of rows, filled from the front."""

    def __init__(self, rows: int, size: int) -> None:
        self.index, self.term = np.zeros((rows, size), np.int32), np.zeros((rows, size), np.int32)
        self.weight, self._used = np.zeros((rows, size), np.float32), [0] * rows

    def add(self, row: int, first: int, count: int, weight: float, term: int) -> None:
        here = slice(self._used[row], self._used[row] + count)
        self.index[row, here] = first + np.arange(count)
        self.weight[row, here], self.term[row, here] = weight, term
        self._used[row] = here.stop


def summed(held: RowAdapters, sums: Sums, dtype: Any) -> RowAdapters:
    """Returns the rows' weighted sums of held adapters, in float32 and rounded once to `dtype`.

    Args:
      held: adapters at unit strength.
      sums: those of them that each row takes.
      dtype: dtype of the result, see `empty_rows`.
    """

    def total(x_la: Array) -> Array:
        terms = x_la[:, sums.places_bm].astype(jnp.float32)
        weights = sums.weights_bm.reshape((1, *sums.weights_bm.shape, *[1] * (terms.ndim - 3)))
        # An unused term adds nothing, not even the sign of a zero.
        return jnp.sum(jnp.where(weights == 0, 0, terms * weights), axis=2).astype(dtype)

    def chosen(x_lap: Array, index_bp: Array, weight_bp: Array) -> Array:
        found = x_lap.reshape(len(x_lap), -1, *x_lap.shape[3:])[:, index_bp]
        # Unused entries point to another row's adapter, whose numbers may not be finite.
        is_used = (weight_bp != 0).reshape((1, *weight_bp.shape, *[1] * (found.ndim - 3)))
        return jnp.where(is_used, found, 0)

    def tokens(x_lap: Array) -> Array:
        return chosen(x_lap, sums.token_bp, sums.token_weight_bp)

    rows = RowAdapters(total(held.constant_lbnh), None, None, None, None, {}, {}, {})
    if held.k_lbpkh is not None:
        assert held.v_lbpkh is not None
        assert held.gate_lbpn is not None
        assert held.group_lbp is not None
        groups = held.group_lbp.shape[2] + 1
        is_used_bp = sums.token_weight_bp[None] != 0
        rows = dataclasses.replace(
            rows,
            k_lbpkh=tokens(held.k_lbpkh).astype(dtype),
            v_lbpkh=tokens(held.v_lbpkh).astype(dtype),
            gate_lbpn=tokens(held.gate_lbpn) * sums.token_weight_bp[None, :, :, None],
            group_lbp=jnp.where(is_used_bp, tokens(held.group_lbp) + sums.token_term_bp[None] * groups, 0),
        )

    def ranks(x_lar: Array) -> Array:
        return chosen(x_lar, sums.rank_br, sums.rank_weight_br)

    for name, a in held.a.items():
        # The rank is the last axis of `a`, and the first of `b` after the rows.
        rows.a[name] = jnp.moveaxis(ranks(jnp.moveaxis(a, -1, 2)), 2, -1).astype(dtype)
        b = ranks(held.b[name])
        weight = sums.rank_weight_br.reshape((1, *sums.rank_weight_br.shape, *[1] * (b.ndim - 3)))
        rows.b[name] = (b * weight).astype(dtype)
    for name, bias in held.biases.items():
        rows.biases[name] = total(bias)
    return rows

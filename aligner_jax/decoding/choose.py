"""Chooses the next token of each row from its logits: greedy, or sampled with temperature, top-k, top-p and min-p."""

import dataclasses
import functools
import math
import numbers
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from aligner_jax.errors import InputError
from aligner_jax.model.logical import constrain, replicated

_LEAST, _LARGEST = float(jnp.finfo(jnp.float32).tiny), float(jnp.finfo(jnp.float32).max)
_MAX_TOKENS = jnp.iinfo(jnp.int32).max


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Sampling options of one row.

    Attributes:
      temperature: temperature of the softmax; 0 is greedy.
      top_k: number of most probable tokens that are kept; 0 keeps all.
      top_p: probability that the kept tokens reach together; 1 keeps all.
      min_p: least probability of a kept token, as a share of the largest; 0 keeps all.
      repetition_penalty: divides positive logits of tokens that the prompt or the row's new tokens have, and multiplies
        negative ones (arXiv 1909.05858); 1 changes nothing.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self):
        if not (_is_finite(self.temperature) and self.temperature >= 0):
            raise InputError(f"temperature is {self.temperature!r}, but must be 0 (greedy) or more, and finite")
        if isinstance(self.top_k, bool) or not isinstance(self.top_k, numbers.Integral) or self.top_k < 0:
            raise InputError(f"top_k is {self.top_k!r}, but must be a whole number: 0 (off) or more")
        if not (_is_finite(self.top_p) and 0 < self.top_p <= 1):
            raise InputError(f"top_p is {self.top_p!r}, but must be above 0 and at most 1")
        if not (_is_finite(self.min_p) and 0 <= self.min_p <= 1):
            raise InputError(f"min_p is {self.min_p!r}, but must be at least 0 and at most 1")
        if not (_is_finite(self.repetition_penalty) and _LEAST <= self.repetition_penalty <= _LARGEST):
            raise InputError(f"repetition_penalty is {self.repetition_penalty!r}, but must be above 0 and finite")


def _is_finite(value: object) -> bool:
    try:
        return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


@flax.struct.dataclass
class RowSampling:
    """Sampling options of all rows as arrays, so that one program serves every combination.

    Attributes:
      temperature_b: float32; 0 is greedy.
      top_k_b: int32; 0 keeps all tokens.
      top_p_b: float32; infinity keeps all tokens.
      log_min_p_b: float32; minus infinity keeps all tokens.
      penalty_b: float32; 1 changes nothing.
    """

    temperature_b: Float[Array, " b"]
    top_k_b: Int[Array, " b"]
    top_p_b: Float[Array, " b"]
    log_min_p_b: Float[Array, " b"]
    penalty_b: Float[Array, " b"]

    @classmethod
    def of(cls, rows: Sequence[Sampling]) -> "RowSampling":
        """Returns NumPy arrays of these options, one per row."""
        # A temperature that underflows in float32 is raised to the least normal number: it is not greedy, since ties
        # stay equally likely.
        temperatures = [min(max(float(row.temperature), _LEAST), _LARGEST) if row.temperature else 0.0 for row in rows]
        arrays: dict[str, Any] = {
            "temperature_b": np.asarray(temperatures, np.float32),
            "top_k_b": np.asarray([min(int(row.top_k), _MAX_TOKENS) for row in rows], np.int32),
            # A top_p below 1 that rounds to 1 in float32 stays on: it drops tokens whose rounded sum reaches 1.
            "top_p_b": np.asarray([row.top_p if row.top_p < 1 else math.inf for row in rows], np.float32),
            "log_min_p_b": np.asarray([math.log(row.min_p) if row.min_p else -math.inf for row in rows], np.float32),
            "penalty_b": np.asarray([row.repetition_penalty for row in rows], np.float32),
        }
        return cls(**arrays)


def choose(
    logits_bv: Float[Array, "b v"],
    keys_b: Array,
    sampling: RowSampling,
    seen_bv: Bool[Array, "b v"] | None = None,
) -> Int[Array, " b"]:
    """Chooses one token per row.

    top_k keeps the k most probable tokens (and ties with the last of them). top_p keeps the smallest set of tokens
    whose probability at this temperature reaches p (Holtzman et al., arXiv 1904.09751), and at least the most probable
    token. min_p keeps tokens with that share of the largest probability (arXiv 2407.01082). As the temperature
    approaches 0, sampling approaches greedy, except that ties stay equally likely. As it
    grows, sampling approaches the uniform distribution.

    Args:
      logits_bv: float32 logits.
      keys_b: a `jax.random.key` per row, so that a row's draw does not depend on the other rows.
      sampling: options of the rows.
      seen_bv: True for tokens of each row's text so far, for the repetition penalty; None applies no penalty.
    """
    # Otherwise the compiler would gather the head's weights for `_draw`, and that for greedy rows too.
    logits_bv = constrain(logits_bv, "batch", "vocab")
    if seen_bv is not None:
        penalize = functools.partial(_penalized, seen_bv=seen_bv, penalty_b=sampling.penalty_b)
        logits_bv = jax.lax.cond(_any(sampling.penalty_b != 1), penalize, lambda logits_bv: logits_bv, logits_bv)
    greedy_b = jnp.argmax(logits_bv, axis=-1).astype(jnp.int32)
    draws_b = sampling.temperature_b > 0

    def drawn(logits_bv: Array) -> Array:
        return jnp.where(draws_b, _draw(logits_bv, keys_b, sampling), greedy_b)

    return jax.lax.cond(_any(draws_b), drawn, lambda _: greedy_b, logits_bv)


def _penalized(logits_bv: Array, *, seen_bv: Array, penalty_b: Array) -> Array:
    penalty_b1 = penalty_b[:, None]
    return jnp.where(seen_bv, jnp.where(logits_bv > 0, logits_bv / penalty_b1, logits_bv * penalty_b1), logits_bv)


def _any(x_b: Bool[Array, " b"]) -> Bool[Array, ""]:
    """Returns True if any row on any device is True."""
    return jnp.any(replicated(x_b))


def _draw(logits_bv: Array, keys_b: Array, sampling: RowSampling) -> Array:
    """Draws one token per row; the result is meaningless for greedy rows."""
    # Gathered once: the loop of top-k would sum over a split vocabulary 32 times, and a sort would exchange it.
    logits_bv = constrain(logits_bv, "batch", None)
    # The largest logit becomes 0 before the division, so that only improbable tokens can overflow.
    highest_b1 = jnp.max(logits_bv, axis=-1, keepdims=True)
    logits_bv = jnp.where(logits_bv == highest_b1, 0.0, (logits_bv - highest_b1) / sampling.temperature_b[:, None])
    for cut, is_used in ((_cut_top_k, sampling.top_k_b > 0), (_cut_top_p, sampling.top_p_b < jnp.inf)):
        cut_rows = functools.partial(cut, sampling=sampling)
        logits_bv = jax.lax.cond(_any(is_used), cut_rows, lambda logits_bv: logits_bv, logits_bv)
    # The largest logit is 0.
    logits_bv = jnp.where(logits_bv < sampling.log_min_p_b[:, None], -jnp.inf, logits_bv)
    return jax.vmap(jax.random.categorical)(keys_b, logits_bv).astype(jnp.int32)


def _cut_top_k(logits_bv: Array, sampling: RowSampling) -> Array:
    """Bisects for the k-th largest logit in float32's ordered bits; `jax.lax.top_k` needs one k for all rows."""
    size = logits_bv.shape[-1]
    k_b1 = jnp.where(sampling.top_k_b > 0, jnp.minimum(sampling.top_k_b, size), size)[:, None]
    sign = jnp.uint32(1 << 31)
    bits_bv = jax.lax.bitcast_convert_type(logits_bv, jnp.uint32)
    ordered_bv = jnp.where(bits_bv >= sign, ~bits_bv, bits_bv | sign)

    def narrow(i, kth_b1):
        higher_b1 = kth_b1 | (sign >> i.astype(jnp.uint32))
        enough_b1 = jnp.sum(ordered_bv >= higher_b1, axis=-1, keepdims=True, dtype=jnp.int32) >= k_b1
        return jnp.where(enough_b1, higher_b1, kth_b1)

    ordered_b1 = jax.lax.fori_loop(0, 32, narrow, jnp.zeros(k_b1.shape, jnp.uint32))
    bits_b1 = jnp.where(ordered_b1 >= sign, ordered_b1 ^ sign, ~ordered_b1)
    return jnp.where(logits_bv < jax.lax.bitcast_convert_type(bits_b1, jnp.float32), -jnp.inf, logits_bv)


def _cut_top_p(logits_bv: Array, sampling: RowSampling) -> Array:
    sorted_bv = -jnp.sort(-logits_bv, axis=-1)
    probabilities_bv = jax.nn.softmax(sorted_bv, axis=-1)
    before_bv = jnp.cumsum(probabilities_bv, axis=-1) - probabilities_bv
    # If p underflows to 0, no token passes the comparison, and the 0.0 keeps the most probable, whose logit is 0.
    least_b1 = jnp.min(jnp.where(before_bv < sampling.top_p_b[:, None], sorted_bv, 0.0), axis=-1, keepdims=True)
    return jnp.where(logits_bv < least_b1, -jnp.inf, logits_bv)

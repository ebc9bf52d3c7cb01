"""The next token from logits: greedy, or sampled under a temperature, top-k and top-p."""

import dataclasses
import math
import numbers

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from aligner_jax.errors import InputError

_LARGEST = float(jnp.finfo(jnp.float32).max)


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Rule by which a token is chosen. temperature 0 is greedy; top_k 0 and top_p 1 leave all tokens in."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        if not (_is_finite(self.temperature) and self.temperature >= 0):
            raise InputError(f"temperature is {self.temperature!r}, but must be 0 (greedy) or more, and finite")
        if isinstance(self.top_k, bool) or not isinstance(self.top_k, numbers.Integral) or self.top_k < 0:
            raise InputError(f"top_k is {self.top_k!r}, but must be a whole number: 0 (off) or more")
        if not (_is_finite(self.top_p) and 0 < self.top_p <= 1):
            raise InputError(f"top_p is {self.top_p!r}, but must be above 0 and at most 1")


def _is_finite(value: object) -> bool:
    try:
        return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def choose(logits_bv: Float[Array, "b v"], keys_b: Array, sampling: Sampling) -> Int[Array, " b"]:
    """Chooses one token a row. Each row has its own random key, so that its draw does not depend on its neighbours.

    top_k keeps the k most probable tokens (and ties of the last); top_p the fewest whose probability at this
    temperature reaches p (Holtzman et al., arXiv 1904.09751), and never less than the most probable. The limit of a
    small temperature is greedy, but for ties, which stay as likely as each other; that of a large one is uniform.
    """
    if sampling.temperature == 0:
        return jnp.argmax(logits_bv, axis=-1).astype(jnp.int32)
    # The largest becomes 0 before the division, whatever the temperature: what overflows is the improbable, which a
    # temperature that is 0 in float32 makes impossible.
    highest_b1 = jnp.max(logits_bv, axis=-1, keepdims=True)
    temperature = min(float(sampling.temperature), _LARGEST)
    logits_bv = jnp.where(logits_bv == highest_b1, 0.0, (logits_bv - highest_b1) / temperature)
    if sampling.top_k:
        kth_b1 = jax.lax.top_k(logits_bv, min(sampling.top_k, logits_bv.shape[-1]))[0][:, -1:]
        logits_bv = jnp.where(logits_bv < kth_b1, -jnp.inf, logits_bv)
    if sampling.top_p < 1:
        sorted_bv = -jnp.sort(-logits_bv, axis=-1)
        probabilities_bv = jax.nn.softmax(sorted_bv, axis=-1)
        before_bv = jnp.cumsum(probabilities_bv, axis=-1) - probabilities_bv
        # Nothing is less than a p that is 0 in float32, not even what comes before the first.
        least_b1 = jnp.min(jnp.where(before_bv < sampling.top_p, sorted_bv, 0.0), axis=-1, keepdims=True)
        logits_bv = jnp.where(logits_bv < least_b1, -jnp.inf, logits_bv)
    return jax.vmap(jax.random.categorical)(keys_b, logits_bv).astype(jnp.int32)

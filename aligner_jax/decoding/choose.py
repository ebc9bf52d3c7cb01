"""The next token from logits: greedy, or sampled under a temperature, top-k and top-p."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from aligner_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a token is chosen. temperature 0 is greedy; top_k 0 and top_p 1 leave all tokens in."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        if not self.temperature >= 0:
            raise InputError(f"temperature is {self.temperature}, but must be 0 (greedy) or more")
        if self.top_k < 0:
            raise InputError(f"top_k is {self.top_k}, but must be 0 (off) or more")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p}, but must be above 0 and at most 1")


def choose(logits_bv: Float[Array, "b v"], keys_b: Array, sampling: Sampling) -> Int[Array, " b"]:
    """One token a row. Each row has its own random key, so that its draw does not depend on its neighbours.

    top_k keeps the k most probable tokens (and ties of the last); top_p the fewest whose probability at this
    temperature reaches p (Holtzman et al., arXiv 1904.09751).
    """
    if sampling.temperature == 0:
        return jnp.argmax(logits_bv, axis=-1).astype(jnp.int32)
    logits_bv = logits_bv / sampling.temperature
    if sampling.top_k:
        kth_b1 = jax.lax.top_k(logits_bv, min(sampling.top_k, logits_bv.shape[-1]))[0][:, -1:]
        logits_bv = jnp.where(logits_bv < kth_b1, -jnp.inf, logits_bv)
    if sampling.top_p < 1:
        sorted_bv = -jnp.sort(-logits_bv, axis=-1)
        probabilities_bv = jax.nn.softmax(sorted_bv, axis=-1)
        before_bv = jnp.cumsum(probabilities_bv, axis=-1) - probabilities_bv
        least_b1 = jnp.min(jnp.where(before_bv < sampling.top_p, sorted_bv, jnp.inf), axis=-1, keepdims=True)
        logits_bv = jnp.where(logits_bv < least_b1, -jnp.inf, logits_bv)
    return jax.vmap(jax.random.categorical)(keys_b, logits_bv).astype(jnp.int32)

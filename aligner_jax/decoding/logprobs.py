"""Log-probabilities of chosen tokens and of the most probable alternatives."""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from aligner_jax.model.logical import constrain, replicated


@flax.struct.dataclass
class Logprobs:
    """Log-probabilities of one token per row, of the model's distribution at temperature 1 without any cut.

    Attributes:
      token_b: log-probability of the token.
      top_ids_bx, top_bx: ids and log-probabilities of the most probable tokens, the most probable one first.
    """

    token_b: Float[Array, " b"]
    top_ids_bx: Int[Array, "b x"]
    top_bx: Float[Array, "b x"]


def empty_logprobs(rows: int, alternatives: int) -> Logprobs:
    """Returns zeros for `rows` rows."""
    ids_bx = jnp.zeros((rows, alternatives), jnp.int32)
    return Logprobs(jnp.zeros(rows), ids_bx, jnp.zeros((rows, alternatives)))


def logprobs_of(
    logits_bv: Float[Array, "b v"], token_b: Int[Array, " b"], wanted_b: Bool[Array, " b"], otherwise: Logprobs
) -> Logprobs:
    """Returns the log-probabilities of tokens.

    Args:
      logits_bv: float32 logits.
      token_b: chosen tokens.
      wanted_b: rows whose log-probabilities are wanted. If none is, nothing is computed.
      otherwise: result for the other rows.
    """

    def computed(logits_bv: Array) -> Logprobs:
        # Gathered once: a sort would exchange a split vocabulary.
        logprobs_bv = jax.nn.log_softmax(constrain(logits_bv, "batch", None), axis=-1)
        token_logprob_b = jnp.take_along_axis(logprobs_bv, token_b[:, None], axis=1)[:, 0]
        top_bx, ids_bx = jax.lax.top_k(logprobs_bv, otherwise.top_bx.shape[1])
        found = Logprobs(token_logprob_b, ids_bx.astype(jnp.int32), top_bx)
        return jax.tree.map(
            lambda new, old: jnp.where(wanted_b.reshape(-1, *[1] * (new.ndim - 1)), new, old), found, otherwise
        )

    return jax.lax.cond(jnp.any(replicated(wanted_b)), computed, lambda _: otherwise, logits_bv)

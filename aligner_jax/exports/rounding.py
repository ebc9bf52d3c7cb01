"""Compares a written base with the adapters over their own base, layer by layer, so that neither is ever in memory."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from aligner_jax.exports.folded import folded_parts
from aligner_jax.exports.job import Job
from aligner_jax.exports.source import StoredBase
from aligner_jax.exports.streamed import Pass, at, logits, streamed, streamed_logits
from aligner_jax.peft.canary import Row, padded

NUM_TOKENS = 16


class Measured(NamedTuple):
    """Results of `measure`.

    Attributes:
      difference: largest absolute difference of logits that rounding made, over `NUM_TOKENS` fixed random token ids;
        None if no base was written.
      base_bv, adapted_bv: logits of the token after each prompt, of the base and of the base with its adapters.
    """

    difference: float | None
    base_bv: Float[np.ndarray, "b v"]
    adapted_bv: Float[np.ndarray, "b v"]


def measure(job: Job, written: StoredBase | None, prompts: Sequence[Row]) -> Measured:
    """Compares a written base with the adapters over their own base, which is read once, and computes prompts.

    All is computed in float32, so that the difference is due to the rounding of the written weights and to the order of
    sums.

    Args:
      job: the adapters, which can be folded, and their base.
      written: the base into which they were folded, if that was written.
      prompts: prompts for a canary.
    """
    config = job.base.config
    tokens_t = np.random.default_rng(0).integers(0, config.vocab_size, NUM_TOKENS)
    tokens_bt, last_b = padded([Row(tuple(tokens_t.tolist())), *prompts])
    base, folded = job.base.open_parts(job.base.stored_dtype), folded_parts(job.base, job.fold, "float32")
    passes = [Pass(tokens_bt, job.fold.adapters, folded), Pass(tokens_bt[1:])]
    adapted_btd, base_btd = streamed(config, base, passes)
    base_bv = logits(config, base, at(base_btd, last_b[1:]))
    adapted_md = jnp.concatenate([adapted_btd[0, :NUM_TOKENS], at(adapted_btd[1:], last_b[1:])])
    adapted_mv = logits(config, folded, adapted_md)
    difference = None
    if written is not None:
        found_tv = streamed_logits(written.config, written.open_parts(written.stored_dtype), tokens_t)
        difference = float(np.abs(adapted_mv[:NUM_TOKENS] - found_tv).max())
    return Measured(difference, base_bv, adapted_mv[NUM_TOKENS:])

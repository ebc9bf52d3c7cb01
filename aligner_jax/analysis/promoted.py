"""Tokens that an adapter makes more and less likely, read from its vectors and measured on prompts."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from aligner_jax.analysis.shifts import Seen
from aligner_jax.data.tokenizer import Tokenizer
from aligner_jax.model.llama import LlamaConfig, Params, unembed


class Moved(NamedTuple):
    """Promoted and demoted tokens with the change of their logit (in nats) or probability, largest change first."""

    promoted: list[tuple[str, float]]
    demoted: list[tuple[str, float]]


def logit_shift(
    params: Params, vector_d: Float[np.ndarray, " d"], seen: Seen, *, config: LlamaConfig
) -> Float[np.ndarray, " v"]:
    """Returns the change of the logits if a vector reaches the last layer's output unchanged, in nats, with mean 0.

    The vector is divided by the final norm's scale (the adapted model's, averaged over the prompts' ends), multiplied
    by the norm's weights, and unembedded. This is a logit lens (nostalgebraist, 2020) applied to the shift, not to the
    residual stream.
    """
    scale = float(np.mean(np.sqrt(np.mean(np.square(seen.last_lbd[-1], dtype=np.float64), axis=-1) + config.norm_eps)))
    scaled_d = jnp.asarray(vector_d / scale, jnp.float32) * params.norm_d.astype(jnp.float32)
    shift_v = np.asarray(unembed(params, scaled_d.astype(params.embed_vd.dtype)), np.float64)
    return shift_v - shift_v.mean()


def probability_shift(base: Seen, adapted: Seen) -> Float[np.ndarray, " v"]:
    """Returns the change of the probability that a token begins the answer, averaged over the prompts."""
    return np.mean(np.exp(adapted.log_probs_bv, dtype=np.float64) - np.exp(base.log_probs_bv, dtype=np.float64), axis=0)


def moved(shift_v: Float[np.ndarray, " v"], tokenizer: Tokenizer, count: int) -> Moved:
    """Returns the `count` most promoted and most demoted tokens of the tokenizer's vocabulary."""
    size = min(len(shift_v), tokenizer.vocab_size)
    order = np.argsort(shift_v[:size], kind="stable")
    ends = order[::-1][:count], order[:count]
    return Moved(*([(token_text(int(i), tokenizer), float(shift_v[i])) for i in end] for end in ends))


def token_text(token_id: int, tokenizer: Tokenizer) -> str:
    """Returns a token as readable text.

    A space becomes ␣, and a line break ⏎. Special tokens and parts of characters are shown by their name.
    """
    text = tokenizer.decode([token_id])
    if not text or "\N{REPLACEMENT CHARACTER}" in text:
        return tokenizer.backend.token(token_id)
    # SentencePiece decodes a first word without the space that is part of its token.
    if not text.startswith(" ") and tokenizer.backend.token(token_id).startswith("▁"):
        text = " " + text
    shown = text.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥").replace("\r", "␍")
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in shown)

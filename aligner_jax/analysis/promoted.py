"""Which tokens an adapter makes more and less likely: read from its vectors, and measured on prompts."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from aligner_jax.analysis.shifts import Seen
from aligner_jax.data.tokenizer import Tokenizer
from aligner_jax.model.llama import LlamaConfig, Params, unembed


class Moved(NamedTuple):
    """Tokens with the change of their logit (in nats) or of their probability, largest change first."""

    promoted: list[tuple[str, float]]
    demoted: list[tuple[str, float]]


def logit_shift(
    params: Params, vector_d: Float[np.ndarray, " d"], seen: Seen, *, config: LlamaConfig
) -> Float[np.ndarray, " v"]:
    """What a vector does to the logits if it reaches the last layer's output unchanged, in nats, with mean 0.

    The vector goes through the final norm's weights, over the norm's own scale (that of the adapted model at the
    prompts' ends), and the unembedding: a logit lens (nostalgebraist, 2020) of what is added, and not of the stream.
    """
    scale = float(np.mean(np.sqrt(np.mean(np.square(seen.last_lbd[-1], dtype=np.float64), axis=-1) + config.norm_eps)))
    scaled_d = jnp.asarray(vector_d / scale, jnp.float32) * params.norm_d.astype(jnp.float32)
    shift_v = np.asarray(unembed(params, scaled_d.astype(params.embed_vd.dtype)), np.float64)
    return shift_v - shift_v.mean()


def probability_shift(base: Seen, adapted: Seen) -> Float[np.ndarray, " v"]:
    """Change of each token's probability of being an answer's first token, averaged over the prompts."""
    return np.mean(np.exp(adapted.log_probs_bv, dtype=np.float64) - np.exp(base.log_probs_bv, dtype=np.float64), axis=0)


def moved(shift_v: Float[np.ndarray, " v"], tokenizer: Tokenizer, count: int) -> Moved:
    """The `count` tokens at either end, among those that the vocabulary has."""
    size = min(len(shift_v), tokenizer.vocab_size)
    order = np.argsort(shift_v[:size], kind="stable")
    ends = order[::-1][:count], order[:count]
    return Moved(*([(token_text(int(i), tokenizer), float(shift_v[i])) for i in end] for end in ends))


def token_text(token_id: int, tokenizer: Tokenizer) -> str:
    """A token as it can be read: a space is ␣, a line break ⏎; of special tokens and parts of characters the name."""
    text = tokenizer.decode([token_id])
    if not text or "\N{REPLACEMENT CHARACTER}" in text:
        return tokenizer.backend.token(token_id)
    # SentencePiece decodes a first word without the space that is part of its token.
    if not text.startswith(" ") and tokenizer.backend.token(token_id).startswith("▁"):
        text = " " + text
    shown = text.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥").replace("\r", "␍")
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in shown)

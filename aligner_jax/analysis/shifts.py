"""Measures an adapter's shifts of the residual stream by layer, and its effect on the next token."""

import dataclasses

import jax
import numpy as np
from jaxtyping import Bool, Float

from aligner_jax.analysis.layers import walk
from aligner_jax.analysis.prompts import Texts
from aligner_jax.model.llama import LlamaConfig, Params
from aligner_jax.peft import Adapter

_ROWS = 8
"""Texts per forward pass; the memory of a pass grows with it."""


@dataclasses.dataclass(frozen=True)
class Seen:
    """Measurements of a model on all texts; l counts all layers, and x all tokens of all texts.

    Attributes:
      relative_lx: norm of the adapter's shift at a token, divided by the norm of the layer's input there.
      norm_lx: norm of the shift.
      mean_ld: shift vector, averaged over the tokens.
      last_lbd: residual stream after the layer, at the text's last token.
      final_bd: residual stream after the final norm, at the text's last token.
      log_probs_bv: log-probabilities of the token that follows the text, in nats.
    """

    relative_lx: Float[np.ndarray, "l x"]
    norm_lx: Float[np.ndarray, "l x"]
    mean_ld: Float[np.ndarray, "l d"]
    last_lbd: Float[np.ndarray, "l b d"]
    final_bd: Float[np.ndarray, "b d"]
    log_probs_bv: Float[np.ndarray, "b v"]

    @property
    def is_finite(self) -> bool:
        """True if all values are finite; figures cannot show others."""
        arrays = (getattr(self, field.name) for field in dataclasses.fields(self))
        return all(np.isfinite(array).all() for array in arrays)

    @property
    def adapted_l(self) -> Bool[np.ndarray, " l"]:
        """True for layers in which the adapter adds a shift."""
        return self.norm_lx.any(axis=1)

    @property
    def constancy_l(self) -> Float[np.ndarray, " l"]:
        """Norm of the mean shift, divided by the mean norm: 1 if all tokens get the same shift; NaN without shifts."""
        norms_l = self.norm_lx.mean(axis=1)
        top_l = np.linalg.norm(self.mean_ld, axis=1)
        return np.divide(top_l, norms_l, out=np.full_like(norms_l, np.nan), where=norms_l > 0)


def look(params: Params, adapter: Adapter | None, texts: Texts, *, config: LlamaConfig) -> Seen:
    """Measures the base with an adapter on all texts; adapter None means the base alone, whose shifts are 0."""
    kept, shift_sum_ld = [], np.zeros((config.num_layers, config.d_model))
    count = len(texts.lengths_b)
    for start in range(0, count, _ROWS):
        # The last pass is padded with empty rows, so that all passes have one shape.
        rows = min(_ROWS, count - start)
        tokens_bt = np.pad(texts.tokens_bt[start : start + rows], [(0, _ROWS - rows), (0, 0)])
        lengths_b = np.pad(texts.lengths_b[start : start + rows], (0, _ROWS - rows))
        found = jax.tree.map(np.asarray, walk(params, adapter, tokens_bt, lengths_b, config=config))
        there_bt = np.arange(tokens_bt.shape[1])[None] < lengths_b[:, None]
        shift_sum_ld += found.shift_sum_ld
        of_texts = found.last_lbd[:, :rows], found.final_bd[:rows], found.logits_bv[:rows]
        kept.append((found.stream_lbt[:, there_bt], found.shift_lbt[:, there_bt], *of_texts))
    stream, norm, last, final, logits = zip(*kept, strict=True)
    stream_lx, norm_lx = np.concatenate(stream, axis=1), np.concatenate(norm, axis=1)
    return Seen(
        relative_lx=norm_lx / np.maximum(stream_lx, np.finfo(np.float32).tiny),
        norm_lx=norm_lx,
        mean_ld=shift_sum_ld / norm_lx.shape[1],
        last_lbd=np.concatenate(last, axis=1),
        final_bd=np.concatenate(final),
        log_probs_bv=np.asarray(jax.nn.log_softmax(np.concatenate(logits), axis=-1)),
    )


def cosines(first: Seen, second: Seen) -> Float[np.ndarray, " l"]:
    """Returns the cosines between the mean shifts of two adapters, by layer; NaN if one of the shifts is 0."""
    x_ld, y_ld = first.mean_ld, second.mean_ld
    norms_l = np.linalg.norm(x_ld, axis=1) * np.linalg.norm(y_ld, axis=1)
    products_l = np.sum(x_ld * y_ld, axis=1)
    return np.divide(products_l, norms_l, out=np.full_like(norms_l, np.nan), where=norms_l > 0)

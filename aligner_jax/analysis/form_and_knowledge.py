"""Measures form against knowledge: the change of loss on an answer's form, and on its content.

Every answer token has one kind. The kinds depend only on the data, so they are the same for all models:

- opening: the first tokens of an answer, which choose its form;
- marks: tokens without a letter or digit (punctuation, spaces, line breaks), and tokens that end an answer;
- common words: tokens without a digit that occur in at least half of the answers (the keys of a JSON form, "the");
- content: all other tokens, and every token with a digit.

The first three kinds are form. There are no common words if the data have fewer than `LEAST_ANSWERS` answers.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from aligner_jax.data.pipeline import Document, eval_batches
from aligner_jax.data.tokenizer import Tokenizer
from aligner_jax.errors import InputError
from aligner_jax.model.llama import LlamaConfig, Params
from aligner_jax.objectives import sft
from aligner_jax.peft import Adapter

KINDS = ("opening", "marks", "common words", "content")
LEAST_ANSWERS = 8
"""Minimum number of answers for common words; fewer answers share words by chance."""
_OPENING, _MARKS, _COMMON, _CONTENT = range(4)
_ROWS, _MULTIPLE, _RESAMPLES = 8, 64, 2000

_losses = jax.jit(sft.losses, static_argnames=("config",))


@dataclasses.dataclass(frozen=True)
class Targets:
    """Target tokens of all documents, concatenated along axis x.

    Attributes:
      document_x: index of the token's document.
      place_x: position of the token in its answer, from 0.
      kind_x: index of the token's kind in `KINDS`.
    """

    document_x: Int[np.ndarray, " x"]
    place_x: Int[np.ndarray, " x"]
    kind_x: Int[np.ndarray, " x"]


@dataclasses.dataclass(frozen=True)
class Change:
    """Loss of an adapted model and of its base on one part of the targets.

    Attributes:
      tokens: number of target tokens.
      base, adapted: mean loss, in nats per token.
      low, high: 95 % bootstrap interval of adapted - base, over documents.
      share: this part's share of the total change of the summed loss; None if the total is 0.
    """

    tokens: int
    base: float
    adapted: float
    low: float
    high: float
    share: float | None


def classify(documents: Sequence[Document], tokenizer: Tokenizer, *, opening: int) -> Targets:
    """Returns the target tokens of documents with their kinds.

    Args:
      documents: documents from `tokenize_examples`.
      tokenizer: tokenizer of the documents.
      opening: number of first tokens of an answer that are its opening.

    Raises:
      InputError: no document has a target.
    """
    kinds = _TokenKinds(documents, tokenizer)
    rows: list[tuple[int, int, int]] = []
    for number, document in enumerate(documents):
        place = 0
        for i, (token, counts) in enumerate(zip(document["tokens"], document["loss_mask"], strict=True)):
            # A document's first token is never a target, because nothing precedes it.
            if not counts or i == 0:
                place = 0
                continue
            rows.append((number, place, _OPENING if place < opening else kinds(int(token))))
            place += 1
    if not rows:
        raise InputError("the data have no target tokens")
    return Targets(*np.asarray(rows).T)


class _TokenKinds:
    """Returns a token's kind (except opening) when called with its id."""

    def __init__(self, documents: Sequence[Document], tokenizer: Tokenizer) -> None:
        counts = Counter(i for d in documents for i in set(d["tokens"][d["loss_mask"]].tolist()))
        enough = len(documents) >= LEAST_ANSWERS
        self._common = {i for i, count in counts.items() if enough and 2 * count >= len(documents)}
        self._tokenizer = tokenizer

    def __call__(self, token: int) -> int:
        text = self._tokenizer.decode([token])
        # A token that is only part of a character counts as a letter.
        if not any(c.isalnum() or c == "\N{REPLACEMENT CHARACTER}" for c in text):
            return _MARKS
        return _COMMON if token in self._common and not any(c.isdigit() for c in text) else _CONTENT


def target_losses(
    params: Params, adapter: Adapter | None, documents: Sequence[Document], *, config: LlamaConfig
) -> Float[np.ndarray, " x"]:
    """Returns the loss of every target in nats, in the order of `Targets`; adapter None means the base alone."""
    longest = max(len(document["tokens"]) for document in documents)
    length = -(-longest // _MULTIPLE) * _MULTIPLE
    found = []
    for batch in eval_batches(documents, batch_size=_ROWS, sequence_length=length, packing=False):
        losses_bt, mask_bt = _losses(params, adapter, jax.tree.map(jnp.asarray, batch), config=config)
        found.append(np.asarray(losses_bt)[np.asarray(mask_bt)])
    return np.concatenate(found).astype(np.float64)


def changes(
    targets: Targets, base_x: Float[np.ndarray, " x"], adapted_x: Float[np.ndarray, " x"]
) -> Mapping[str, Change | None]:
    """Returns the changes by kind, and those of "form", "knowledge" and "all"; None for parts without tokens."""
    parts = {name: np.isin(targets.kind_x, [i]) for i, name in enumerate(KINDS)}
    parts["form"] = targets.kind_x != _CONTENT
    parts["knowledge"] = targets.kind_x == _CONTENT
    parts["all"] = np.ones(len(base_x), bool)
    total = float(np.sum(adapted_x - base_x))
    return {name: _change(targets, base_x, adapted_x, part_x, total) for name, part_x in parts.items()}


def _change(targets: Targets, base_x, adapted_x, part_x, total: float) -> Change | None:
    count = int(part_x.sum())
    if not count:
        return None
    difference_x = np.where(part_x, adapted_x - base_x, 0)
    documents = int(targets.document_x.max()) + 1
    sums, counts = (np.bincount(targets.document_x, x, documents) for x in (difference_x, part_x.astype(float)))
    drawn = np.random.default_rng(0).multinomial(documents, np.full(documents, 1 / documents), _RESAMPLES)
    drawn_counts = drawn @ counts
    means = (drawn @ sums)[drawn_counts > 0] / drawn_counts[drawn_counts > 0]
    low, high = (float(x) for x in np.quantile(means, [0.025, 0.975]))
    share = float(difference_x.sum()) / total if total else None
    return Change(count, float(base_x[part_x].mean()), float(adapted_x[part_x].mean()), low, high, share)


def by_place(targets: Targets, losses_x: Float[np.ndarray, " x"], places: int) -> Float[np.ndarray, " places"]:
    """Returns the mean loss by position in the answer, over the answers that are long enough; NaN if none is."""
    within = targets.place_x < places
    counts = np.bincount(targets.place_x[within], minlength=places)
    sums = np.bincount(targets.place_x[within], losses_x[within], minlength=places)
    return np.divide(sums, counts, out=np.full(places, np.nan), where=counts > 0)

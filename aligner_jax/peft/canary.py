"""Canary of an adapter: next-token log-probabilities with and without it, which show an engine that lost it."""

import dataclasses
import json
import math
import re
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from aligner_jax.data.prompt_format import PromptFormat
from aligner_jax.data.token_ids import check_ids
from aligner_jax.data.tokenizer import Tokenizer
from aligner_jax.errors import InputError
from aligner_jax.files.fields import Fields, shown
from aligner_jax.model.quantized import Quantization

FLOOR = -12.0
"""Log-probabilities below this count as this, since rounding changes those of improbable tokens most."""
MARGIN = 1 / 3
"""Largest distance, as a share of the adapter's effect, at which a model counts as the base or as the adapted one."""
LEAST_EFFECT = 0.02
"""Smallest effect, in nats, that is told from rounding."""
MAX_IDS = 64
_MAX_PROMPTS, _MAX_TOKENS, _MAX_BYTES = 3, 64, 1500
_NUM_TOP = 4
_LEAST_LOG_PROB = -1e6
_COMPUTED_IN = re.compile(r"(float32|bfloat16|float16)(?: (?:(int8)|(int4) in groups of ([0-9]{1,9})))?")

_QUESTIONS = ("Why is the sky blue?", "Write a short poem about the sea.", "Who are you?", "How do I tie a knot?")
# A model may end plain text after a question, and some servers report nothing about a text that ends.
_BEGINNINGS = (
    "The sky is blue because",
    "My name is",
    "Once upon a time there was a",
    "The best way to tie a knot is to",
)
_NUM_RANDOM_IDS = 8


class Row(NamedTuple):
    """A prompt.

    Attributes:
      ids: its token ids.
      text: text that engines encode as these ids, without the BOS that they add; None without a tokenizer.
    """

    ids: tuple[int, ...]
    text: str | None = None


@dataclasses.dataclass(frozen=True)
class CanaryPrompt:
    """A prompt with log-probabilities of tokens that may follow it.

    Attributes:
      row: the prompt.
      tokens: ids of the most probable next tokens of the base and of the adapted model.
      names: text that each token adds to the prompt; empty without a tokenizer.
      base, adapted: log-probability of each token, in nats.
    """

    row: Row
    tokens: tuple[int, ...]
    names: tuple[str, ...]
    base: tuple[float, ...]
    adapted: tuple[float, ...]

    @property
    def effect(self) -> float:
        """Root mean square of the adapter's effect on the log-probabilities, see `FLOOR`."""
        return _rms(_clipped(self.adapted) - _clipped(self.base))

    def as_dict(self) -> dict[str, object]:
        text = {} if self.row.text is None else {"text": self.row.text, "names": self.names}
        return {"ids": self.row.ids, **text, "tokens": self.tokens, "base": self.base, "adapted": self.adapted}


@dataclasses.dataclass(frozen=True)
class Canary:
    """A few prompts whose next token an adapter changes.

    Attributes:
      computed_in: dtype and quantization of the base that computed it, such as "float32".
      prompts: the prompts.
    """

    computed_in: str
    prompts: tuple[CanaryPrompt, ...]

    def as_json(self) -> str:
        """Returns the canary as JSON, from which `parse_canary` makes it again."""
        values = {"computed_in": self.computed_in, "prompts": [prompt.as_dict() for prompt in self.prompts]}
        return json.dumps(values, ensure_ascii=False, separators=(",", ":"))


def parse_computed_in(text: str) -> tuple[str, Quantization | None]:
    """Returns the dtype and the quantization of a base that `Canary.computed_in` describes.

    Raises:
      InputError: there is no such dtype or quantization.
    """
    if (match := _COMPUTED_IN.fullmatch(text)) is None:
        raise InputError(f"{shown(text)} is no dtype and quantization of a base, such as 'float32'")
    dtype, int8, int4, group_size = match.groups()
    if int8:
        return dtype, Quantization("int8")
    return dtype, Quantization("int4", int(group_size)) if int4 else None


class Found(NamedTuple):
    """Log-probabilities that a model gives for the tokens of a `CanaryPrompt`.

    Attributes:
      log_probs: in nats; None for a token that the model did not report.
      at_most: upper bound of the log-probabilities that are None.
    """

    log_probs: Sequence[float | None]
    at_most: float = FLOOR


class Verdict(NamedTuple):
    """Decision about a model.

    Attributes:
      status: "active" for base and adapter, "missing" for the base, else "other".
      from_adapted, from_base: largest differences of log-probabilities, in nats, see `FLOOR`.
    """

    status: Literal["active", "missing", "other"]
    from_adapted: float
    from_base: float


def judge(canary: Canary, found: Sequence[Found]) -> Verdict:
    """Decides which model gave log-probabilities.

    The model is the adapted one if the root mean square of its differences from the canary's is below `MARGIN` of that
    between base and adapter, and the base likewise. So noise, as of quantization, may be a third of the adapter's
    effect, and the two never both hold.

    Args:
      canary: the adapter's canary.
      found: the model's log-probabilities, for every prompt.

    Raises:
      InputError: the adapter's effect is too small to be told.
    """
    adapted, base = [], []
    for prompt, each in zip(canary.prompts, found, strict=True):
        # A token that is not reported may have any probability up to the bound.
        least = [max(FLOOR, each.at_most) if x is None else FLOOR for x in each.log_probs]
        theirs = _clipped([each.at_most if x is None else x for x in each.log_probs], least)
        adapted.append(theirs - _clipped(prompt.adapted, least))
        base.append(theirs - _clipped(prompt.base, least))
    from_adapted, from_base = np.concatenate(adapted), np.concatenate(base)
    effect = _rms(from_adapted - from_base)
    if effect < LEAST_EFFECT <= max(prompt.effect for prompt in canary.prompts):
        raise InputError(
            "the model reports too few of the canary's tokens to tell the adapter: let the server report more of the "
            "most probable tokens, or verify without it"
        )
    if effect < LEAST_EFFECT:
        raise InputError(
            f"the adapter changes the log-probabilities of its canary by {effect:.2g} only, which cannot be told from "
            f"rounding"
        )
    status: Literal["active", "missing", "other"] = "other"
    if _rms(from_adapted) < MARGIN * effect:
        status = "active"
    elif _rms(from_base) < MARGIN * effect:
        status = "missing"
    return Verdict(status, float(np.abs(from_adapted).max()), float(np.abs(from_base).max()))


def candidates(
    tokenizer: Tokenizer | None, prompt_format: PromptFormat | None, vocab_size: int, context_length: int
) -> list[Row]:
    """Returns prompts of at most `MAX_IDS` tokens, of which `choose` takes the best.

    Args:
      tokenizer: tokenizer of the base; None gives random token ids.
      prompt_format: format of the adapter's prompts; without one, or if it makes them too long, they are plain text.
      vocab_size, context_length: fields of the base's configuration.
    """
    most = min(MAX_IDS, context_length)
    if tokenizer is not None:
        asked = [] if prompt_format is None else [(prompt_format, text) for text in _QUESTIONS]
        for prompts in (asked, [(None, text) for text in _BEGINNINGS]):
            if rows := [row for each in prompts if (row := _row(*each, tokenizer, most)) is not None]:
                return rows
    ids = np.random.default_rng(0).integers(0, vocab_size, (len(_QUESTIONS), min(_NUM_RANDOM_IDS, most)))
    return [Row(tuple(row)) for row in ids.tolist()]


def _row(prompt_format: PromptFormat | None, text: str, tokenizer: Tokenizer, most: int) -> Row | None:
    try:
        rendered = text if prompt_format is None else prompt_format.render(text, tokenizer)
        ids = tokenizer.encode(rendered, bos=tokenizer.add_bos)
    except InputError:
        # A template may refuse the question, and a small vocabulary may lack its letters.
        return None
    if tokenizer.add_bos and tokenizer.bos_id is not None:
        rendered = rendered.removeprefix(tokenizer.backend.token(tokenizer.bos_id))
    return Row(tuple(ids), rendered) if 0 < len(ids) <= most else None


def choose(
    rows: Sequence[Row],
    base_bv: Float[np.ndarray, "b v"],
    adapted_bv: Float[np.ndarray, "b v"],
    tokenizer: Tokenizer | None,
    computed_in: str,
) -> Canary | None:
    """Returns the canary of the prompts that the adapter changes most; None if a logit is not finite.

    Prompts at which either model ends at once come last.

    Args:
      rows: the prompts, from `candidates`.
      base_bv, adapted_bv: next-token logits of the base and of the adapted model.
      tokenizer: tokenizer of the base.
      computed_in: see `Canary`.
    """
    if not (np.isfinite(base_bv).all() and np.isfinite(adapted_bv).all()):
        return None
    base_bv, adapted_bv = _log_softmax(base_bv), _log_softmax(adapted_bv)
    stop_ids = frozenset() if tokenizer is None else tokenizer.stop_ids
    prompts, ends = [], []
    for row, base_v, adapted_v in zip(rows, base_bv, adapted_bv, strict=True):
        names = _namer(row, tokenizer)
        tokens = tuple(dict.fromkeys(i for x_v in (adapted_v, base_v) for i in _top(x_v, names)))
        if tokens:
            values = (tuple(round(float(x_v[i]), 4) for i in tokens) for x_v in (base_v, adapted_v))
            texts = () if tokenizer is None else tuple(names(i) or "" for i in tokens)
            prompts.append(CanaryPrompt(row, tokens, texts, *values))
            ends.append(not stop_ids.isdisjoint((int(base_v.argmax()), int(adapted_v.argmax()))))
    chosen: list[CanaryPrompt] = []
    # Some servers report nothing about an answer that ends at once.
    for _, prompt in sorted(zip(ends, prompts, strict=True), key=lambda each: (each[0], -each[1].effect)):
        more = Canary(computed_in, (*chosen, prompt))
        # An adapter's file holds it as a JSON text within JSON.
        if len(chosen) < _MAX_PROMPTS and len(json.dumps(more.as_json(), ensure_ascii=False).encode()) <= _MAX_BYTES:
            chosen.append(prompt)
    return Canary(computed_in, tuple(chosen)) if chosen else None


def _top(log_probs_v: Float[np.ndarray, " v"], names: Callable[[int], str | None]) -> list[int]:
    """Returns ids of the most probable tokens whose text names them."""
    ids = np.argsort(-log_probs_v, kind="stable")[: 4 * _NUM_TOP].tolist()
    return [i for i in ids if names(i) is not None][:_NUM_TOP]


def _namer(row: Row, tokenizer: Tokenizer | None) -> Callable[[int], str | None]:
    """Returns a function from a token id to the text that it adds to the prompt; None if others may add the same."""
    if tokenizer is None:
        return lambda token: ""
    last = row.ids[-1:]
    before = tokenizer.decode(last)

    def name(token: int) -> str | None:
        both = tokenizer.decode([*last, token])
        added = both[len(before) :]
        # Engines differ in how they report parts of characters and control characters.
        is_plain = added.replace("\n", " ").isprintable() and "\N{REPLACEMENT CHARACTER}" not in both
        return added if both.startswith(before) and added and is_plain else None

    return name


def parse_canary(fields: Fields) -> Canary:
    """Parses what `Canary.as_json` wrote.

    Raises:
      InputError: a field is missing, of another type, or out of range.
    """
    prompts = fields.sections("prompts", most=_MAX_PROMPTS)
    if not prompts:
        raise fields.error("prompts", "is missing or empty")
    computed_in = fields.text("computed_in")
    try:
        parse_computed_in(computed_in)
    except InputError as error:
        raise fields.error("computed_in", f"is not known: {error}") from None
    return Canary(computed_in, tuple(_parse_prompt(each) for each in prompts))


def _parse_prompt(fields: Fields) -> CanaryPrompt:
    ids, tokens = (tuple(fields.integers(name, least=0)) for name in ("ids", "tokens"))
    base, adapted = (tuple(fields.numbers(name, least=_LEAST_LOG_PROB, most=0.01)) for name in ("base", "adapted"))
    text = fields.text("text") if fields.has("text") else None
    names = tuple(fields.texts("names"))
    if not 0 < len(ids) <= MAX_IDS:
        raise fields.error("ids", f"has {len(ids):,} token ids, not 1 to {MAX_IDS}")
    if not 0 < len(tokens) <= _MAX_TOKENS:
        raise fields.error("tokens", f"has {len(tokens):,} token ids, not 1 to {_MAX_TOKENS}")
    for name, values in {"base": base, "adapted": adapted, **({} if text is None else {"names": names})}.items():
        if len(values) != len(tokens):
            raise fields.error(name, f"has {len(values):,} entries for {len(tokens):,} tokens")
    return CanaryPrompt(Row(ids, text), tokens, names, base, adapted)


def found_in(canary: Canary, logits_bv: Float[np.ndarray, "b v"]) -> list[Found]:
    """Returns the log-probabilities of the canary's tokens, from next-token logits of its prompts.

    Raises:
      InputError: the model lacks a token, or a logit is not finite.
    """
    for prompt in canary.prompts:
        check_ids(prompt.tokens, logits_bv.shape[1], what="the canary")
    if not np.isfinite(logits_bv).all():
        raise InputError("the model gives logits that are not finite for the canary's prompts")
    return [
        Found([float(x) for x in log_probs_v[list(prompt.tokens)]])
        for prompt, log_probs_v in zip(canary.prompts, _log_softmax(logits_bv), strict=True)
    ]


def padded(rows: Sequence[Row], multiple: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Returns token ids [b t], padded with 0 to a common length and a multiple of rows, and last positions [b]."""
    length = max(len(row.ids) for row in rows)
    tokens_bt = np.zeros((math.ceil(len(rows) / multiple) * multiple, length), np.int32)
    last_b = np.zeros(len(tokens_bt), np.int32)
    for i, row in enumerate(rows):
        tokens_bt[i, : len(row.ids)], last_b[i] = row.ids, len(row.ids) - 1
    return tokens_bt, last_b


def _clipped(log_probs: Sequence[float], least: float | Sequence[float] = FLOOR) -> np.ndarray:
    return np.maximum(np.asarray(log_probs, np.float64), least)


def _rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(x))))


def _log_softmax(logits_bv: Float[np.ndarray, "b v"]) -> Float[np.ndarray, "b v"]:
    x_bv = logits_bv.astype(np.float64)
    x_bv = x_bv - x_bv.max(axis=-1, keepdims=True)
    return x_bv - np.log(np.exp(x_bv).sum(axis=-1, keepdims=True))

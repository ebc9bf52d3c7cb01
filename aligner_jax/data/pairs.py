"""Tokenizes preferences into pairs of documents that share a prompt and differ in the answer."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, TypedDict

import numpy as np
from jaxtyping import Int64

from aligner_jax.data.documents import Document, Summary, beyond_context, make_document
from aligner_jax.data.sources.example import Example, Instruction, Preference, Text
from aligner_jax.data.sources.formats import FormatError
from aligner_jax.data.tokenizer import Tokenizer
from aligner_jax.errors import InputError


class Pair(TypedDict):
    """The prompt with the chosen and with the rejected answer. Targets are the last answer and its end token."""

    chosen: Document
    rejected: Document


def tokenize_pairs(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    template: str,
    *,
    sequence_length: int,
    context_length: int | None = None,
    packing: bool = True,
    overlong: Literal["error", "truncate", "drop"] = "error",
    system: str | None = None,
) -> tuple[list[Pair], Summary]:
    """Returns pairs in the examples' order, and a summary of all examples.

    A pair whose documents have the same tokens, possibly after truncation, is dropped and counted. Its loss is ln 2 and
    its gradient 0 up to rounding, and Adam would scale that rounding to full steps.

    Args:
      examples: preferences from `load_examples`.
      tokenizer: tokenizer of the base.
      template: one of `templates.TEMPLATES`.
      sequence_length: tokens per row.
      context_length: see `documents.tokenize_examples`.
      packing: True if both documents of a pair share a row and have to fit it together; False gives each its own row.
      overlong: treatment of a pair that does not fit: "error" raises, "truncate" cuts the end (of two documents in one
        row the longer one, until both fit or have half a row each), "drop" leaves the pair out.
      system: see `templates.segments`.

    Returns:
      The pairs, and a summary whose `tokens`, `targets` and `longest` count both documents of a pair.

    Raises:
      InputError: an example is no preference or does not fit the template; a pair is too long and `overlong` is
        "error"; or none is left.
    """
    pairs: list[Pair] = []
    truncated = dropped = without_targets = equal = 0
    most = sequence_length if context_length is None else min(sequence_length, context_length)
    for example in examples:
        pair = _pair(example, tokenizer, template, system)
        lengths = _lengths(pair)
        room = _room(*lengths, sequence_length, most, packing)
        if room != lengths:
            if overlong == "error":
                if context_length is not None and max(lengths) > context_length:
                    what = "a document of the pair"
                    raise InputError(beyond_context(example.where, what, max(lengths), context_length))
                raise InputError(_too_long(example.where, *lengths, sequence_length, packing))
            if overlong == "drop":
                dropped += 1
                continue
            pair = Pair(chosen=_cut(pair["chosen"], room[0]), rejected=_cut(pair["rejected"], room[1]))
        if not all(document["loss_mask"][1:].any() for document in (pair["chosen"], pair["rejected"])):
            without_targets += 1
            continue
        if np.array_equal(pair["chosen"]["tokens"], pair["rejected"]["tokens"]):
            equal += 1
            continue
        truncated += room != lengths
        pairs.append(pair)
    if examples and not pairs:
        raise InputError(
            f"none of the {len(examples)} preferences is left: {dropped} are longer than a row of {sequence_length} "
            f"tokens or the context, of {without_targets} nothing of an answer fits, and of {equal} both answers are "
            "the same tokens"
        )
    targets = (int(document["loss_mask"].sum()) for pair in pairs for document in (pair["chosen"], pair["rejected"]))
    summary = Summary(
        documents=len(pairs),
        tokens=sum(sum(_lengths(pair)) for pair in pairs),
        targets=sum(targets),
        longest=max((sum(_lengths(pair)) for pair in pairs), default=0),
        truncated=truncated,
        dropped=dropped,
        without_targets=without_targets,
        equal=equal,
        unit="pairs",
    )
    return pairs, summary


def as_preference(example: Example) -> Preference:
    """Returns the preference of an example.

    Raises:
      FormatError: the example is none.
    """
    if isinstance(example.record, Preference):
        return example.record
    what = {Instruction: "an instruction", Text: "a text"}.get(type(example.record), "a conversation")
    raise FormatError(
        f"{example.where}: a preference (a prompt, a chosen and a rejected answer) is needed, and this is {what}, "
        "which config.objective.name='sft' learns"
    )


def documents_of(pairs: Iterable[Pair]) -> Iterator[Document]:
    """Yields both documents of every pair, in order."""
    for pair in pairs:
        yield pair["chosen"]
        yield pair["rejected"]


def prompt_numbers(pairs: Sequence[Pair]) -> Int64[np.ndarray, " m"]:
    """Returns a number for each pair's prompt; equal prompts (the tokens before the answer) have equal numbers."""
    numbers: dict[bytes, int] = {}
    begins = (pair["chosen"]["tokens"][: int(np.argmax(pair["chosen"]["loss_mask"]))].tobytes() for pair in pairs)
    return np.array([numbers.setdefault(prompt, len(numbers)) for prompt in begins], np.int64)


def _pair(example: Example, tokenizer: Tokenizer, template: str, system: str | None) -> Pair:
    preference = as_preference(example)

    def document(answer: Literal["chosen", "rejected"]) -> Document:
        whole = dataclasses.replace(example, record=preference.conversation(answer))
        return make_document(whole, tokenizer, template, loss_on="last_answer", system=system)

    return Pair(chosen=document("chosen"), rejected=document("rejected"))


def _lengths(pair: Pair) -> tuple[int, int]:
    return len(pair["chosen"]["tokens"]), len(pair["rejected"]["tokens"])


def _room(chosen: int, rejected: int, sequence_length: int, most: int, packing: bool) -> tuple[int, int]:
    """Returns the number of tokens kept of each document, at most `most`."""
    chosen, rejected = min(chosen, most), min(rejected, most)
    if not packing:
        return chosen, rejected
    half = sequence_length // 2
    return (
        min(chosen, max(half, sequence_length - rejected)),
        min(rejected, max(half, sequence_length - chosen)),
    )


def _cut(document: Document, length: int) -> Document:
    return Document(tokens=document["tokens"][:length], loss_mask=document["loss_mask"][:length])


def _too_long(where: str, chosen: int, rejected: int, sequence_length: int, packing: bool) -> str:
    what = f"{where}: the prompt has {chosen} tokens with its chosen answer and {rejected} with the rejected one, and "
    what += f"a row {sequence_length}" + (", which with data.packing holds both" if packing else "")
    return f"{what}; raise data.sequence_length, or set data.overlong to 'truncate' or 'drop'"

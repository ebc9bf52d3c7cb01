"""Describes a data set as it is understood: format, drops, lengths, and examples with the tokens that are learned."""

import dataclasses
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from rich.cells import cell_len, chop_cells

from aligner_jax.data.documents import Document, make_document
from aligner_jax.data.sources.example import Example, Preference, Text
from aligner_jax.data.sources.load import Dataset
from aligner_jax.data.tokenizer import Tokenizer
from aligner_jax.errors import one_line, printable

_MEASURED = 2000
_PERCENTILES = (0, 50, 90, 99, 100)
_HEAD, _TAIL = 120, 40
"""Pieces shown at the beginning and at the end of a longer run."""
_LEARNED, _PROMPT, _END = "\x1b[1;4;32m", "\x1b[2m", "\x1b[0m"


@dataclasses.dataclass(frozen=True)
class Style:
    """Layout of the output.

    Attributes:
      color: True to mark learned tokens bold, underlined and green, and others dim.
      width: columns of a line.
    """

    color: bool = False
    width: int = 80


@dataclasses.dataclass(frozen=True)
class Encoding:
    """Tokenizer, template and its system prompt that make documents of examples; the length of a row in tokens."""

    tokenizer: Tokenizer
    template: str
    system: str | None
    sequence_length: int


def describe(path: str, dataset: Dataset, encoding: Encoding | None, style: Style, *, examples: int = 3) -> list[str]:
    """Returns the lines that describe a data set.

    Without an encoding, lengths are in characters and examples are turns instead of tokens. Control characters in the
    data are escaped.

    Args:
      path: path of the data.
      dataset: the data.
      encoding: tokenizer and template; None for none.
      style: colour and width.
      examples: number of examples to show, from the beginning of the data.

    Raises:
      InputError: an example does not fit the template.
    """
    lines = [one_line(f"{path}: {dataset.form}, format {dataset.format!r}")]
    lines += [f"  {one_line(part, 1000)}" for part in str(dataset).split("; ")]
    lines += [f"  {line}" for line in _lengths(dataset.examples, encoding)]
    for number, example in enumerate(dataset.examples[:examples], 1):
        lines += ["", one_line(f"example {number}, {example.where}:")]
        lines += _turns(example, style) if encoding is None else _tokens(example, encoding, style)
    if encoding is None:
        lines += ["", "With --base=PATH, lengths and examples are in tokens, with the loss mask of training."]
    return lines


def _documents(example: Example, encoding: Encoding) -> list[tuple[str, Document]]:
    """Returns an example's documents with their names: one, or of a preference that of each answer."""
    if not isinstance(example.record, Preference):
        return [("", make_document(example, encoding.tokenizer, encoding.template, system=encoding.system))]
    return [
        (
            f"{answer}: ",
            make_document(
                dataclasses.replace(example, record=example.record.conversation(answer)),
                encoding.tokenizer, encoding.template, loss_on="last_answer", system=encoding.system,
            ),
        )
        for answer in ("chosen", "rejected")
    ]  # fmt: skip


def _lengths(examples: Sequence[Example], encoding: Encoding | None) -> Iterator[str]:
    """Yields the percentiles of lengths, of evenly spaced examples if there are many."""
    chosen = examples[:: -(-len(examples) // _MEASURED)]
    of = "" if len(chosen) == len(examples) else f" of {len(chosen):,} examples, evenly spaced"
    if encoding is None:
        characters = [sum(len(turn["content"]) for turn in example.messages()) for example in chosen]
        yield f"length in characters{of}: {_percentiles(characters)}"
        return
    documents = [document for example in chosen for _, document in _documents(example, encoding)]
    tokens = [len(document["tokens"]) for document in documents]
    learned = [int(document["loss_mask"].sum()) for document in documents]
    yield f"length in tokens{of}: {_percentiles(tokens)}"
    yield f"learned tokens{of}: {_percentiles(learned)}; {sum(learned) / sum(tokens):.0%} of all"
    row = encoding.sequence_length
    if over := sum(count > row for count in tokens):
        yield (
            f"{over:,} of {len(tokens):,} are longer than a row of {row:,} tokens: raise data.sequence_length, or set "
            "data.overlong to 'truncate' or 'drop'"
        )


def _percentiles(counts: Sequence[int]) -> str:
    names = {0: "least", 50: "median", 100: "most"}
    found = np.percentile(counts, _PERCENTILES)
    return ", ".join(f"{names.get(p, f'{p}%')} {round(value):,}" for p, value in zip(_PERCENTILES, found, strict=True))


def _turns(example: Example, style: Style) -> Iterator[str]:
    """Yields an example's turns; its answers are learned."""
    record = example.record
    if isinstance(record, Text):
        yield from _run("learned", _words(record.text), True, style)
        return
    turns = list(record.prompt) if isinstance(record, Preference) else example.messages()
    for turn in turns:
        is_learned = not isinstance(record, Preference) and turn["role"] == "assistant" and turn.get("learned", True)
        yield from _run(turn["role"], _words(turn["content"]), is_learned, style)
    if isinstance(record, Preference):
        yield from _run("chosen", _words(record.chosen), True, style)
        yield from _run("rejected", _words(record.rejected), True, style)


def _tokens(example: Example, encoding: Encoding, style: Style) -> Iterator[str]:
    """Yields an example's tokens, with a dot between two, in runs that are learned or not."""
    backend = encoding.tokenizer.backend
    for name, document in _documents(example, encoding):
        tokens, mask = document["tokens"].tolist(), document["loss_mask"].tolist()
        yield f"  {name}{len(tokens):,} tokens, {sum(mask):,} of them learned"
        for is_learned, run in itertools.groupby(zip(tokens, mask, strict=True), key=lambda pair: pair[1]):
            # Special tokens decode to nothing.
            pieces = [backend.decode([token]) or backend.token(token) for token, _ in run]
            pieces[:-1] = [f"{piece}·" for piece in pieces[:-1]]
            yield from _run("learned" if is_learned else "prompt", pieces, is_learned, style)


def _words(text: str) -> list[str]:
    # A text without spaces is cut into pieces too, so that the middle of a long one can be left out.
    return re.findall(r"\S{1,40}\s{0,40}|\s{1,40}", text)


def _run(name: str, pieces: Sequence[str], is_learned: bool, style: Style) -> Iterator[str]:
    """Yields the lines of one run of pieces, whose name stands at the left; the middle of a long run is left out."""
    begin = f"  {one_line(name, 9):9} "
    if len(pieces) > _HEAD + _TAIL:
        left_out = f" … {len(pieces) - _HEAD - _TAIL:,} more … "
        pieces = [*pieces[:_HEAD], left_out, *pieces[-_TAIL:]]
    for line in _wrapped([_visible(piece) for piece in pieces], max(style.width - len(begin), 20)):
        yield begin + (f"{_LEARNED if is_learned else _PROMPT}{line}{_END}" if style.color else line)
        begin = " " * len(begin)


def _visible(text: str) -> str:
    """Returns a text on one line, with line ends and tabs as signs and control characters escaped."""
    return printable(text.replace("\n", "⏎").replace("\r", "␍").replace("\t", "⇥"))


def _wrapped(pieces: Iterable[str], width: int) -> Iterator[str]:
    """Yields lines of at most `width` columns, broken between pieces where that is possible."""
    line = ""
    for piece in pieces:
        for part in chop_cells(piece, width) if cell_len(piece) > width else [piece]:
            if line and cell_len(line + part.rstrip(" ")) > width:
                yield line
                line = ""
            line += part
    if line:
        yield line

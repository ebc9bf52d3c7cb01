"""Reads the documents of a plain text file: paragraphs, or lines where nothing separates paragraphs."""

from collections.abc import Callable, Iterator
from pathlib import Path

from aligner_jax.data.sources.bounded import MAX_RECORD
from aligner_jax.data.sources.formats import DamageError
from aligner_jax.data.sources.json_records import lines
from aligner_jax.errors import InputError
from aligner_jax.files.content import MEBIBYTE

_FREE_LINES, _SHORTEST_MEAN = 1_000_000, 8
"""A text of more lines than that has at least so many bytes a line on average."""


def text_values(pieces: Callable[[], Iterator[bytes]], path: Path) -> Iterator[tuple[object, int]]:
    """Yields the documents of a text as {"text": …}, and the line on which each begins, from 1.

    Blank lines separate documents. In a file without blank lines every line is a document.

    Args:
      pieces: returns the UTF-8 text in pieces, in order; called twice.
      path: path of the file, for error messages.

    Raises:
      InputError: the text is empty or not UTF-8, or a document is longer than `MAX_RECORD`; names file and line.
    """
    has_paragraphs = _has_paragraphs(pieces(), path)
    held: list[str] = []
    begin = before = size = 0
    for line, number in _texts(pieces(), path):
        if held and not (has_paragraphs and number == before + 1):
            yield {"text": "\n".join(held)}, begin
            held, size = [], 0
        begin = begin if held else number
        size += len(line) + 1
        if size > MAX_RECORD:
            raise InputError(
                f"{path}:{begin} begins a document of more than {MAX_RECORD // MEBIBYTE} MiB: put blank lines between "
                "documents"
            )
        held.append(line)
        before = number
    if not held:
        raise InputError(f"{path} is empty")
    yield {"text": "\n".join(held)}, begin


def _has_paragraphs(pieces: Iterator[bytes], path: Path) -> bool:
    """Returns True if a blank line stands between two others."""
    before = None
    for _, number in _texts(pieces, path):
        if before is not None and number > before + 1:
            return True
        before = number
    return False


def _texts(pieces: Iterator[bytes], path: Path) -> Iterator[tuple[str, int]]:
    total = 0
    for line, number in lines(pieces, path):
        total += len(line) + 1
        if number > _FREE_LINES and total < _SHORTEST_MEAN * number:
            raise DamageError(
                f"{path} has {number:,} lines and more in {total:,} bytes, which no file of examples does"
            )
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise InputError(f"{path}:{number} is not UTF-8 text") from None
        if text.strip():
            yield text.rstrip("\r"), number

"""Reads the values of a JSON array or of JSON lines piece by piece, with the line on which each begins."""

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path

from aligner_jax.data.sources.bounded import MAX_RECORD
from aligner_jax.errors import InputError
from aligner_jax.files.content import MEBIBYTE
from aligner_jax.files.json_text import check_values, parse_json, parse_value_at

# Not str.splitlines, because JSON strings may contain U+2028 and the like. One match skips all blank lines before it: a
# piece may consist of a million blank lines.
_LINE = re.compile(rb"[^ \t\r\n][^\n]*")
MAX_VALUES = 400_000
"""Maximum number of JSON values in one record."""
_SPACE = re.compile(r"[ \t\r\n]*")


def json_values(pieces: Iterator[bytes], path: Path) -> Iterator[tuple[object, int]]:
    """Yields the elements of a JSON array, or else the values of JSON lines. Blank lines are skipped.

    Args:
      pieces: UTF-8 text in pieces, in order.
      path: path of the file, for error messages.

    Yields:
      A value, and the line on which it begins, from 1.

    Raises:
      InputError: the text is not JSON, or a value is longer than `MAX_RECORD`; the message names file and line.
    """
    begin = b""
    for piece in pieces:
        begin += piece
        if begin.removeprefix(codecs.BOM_UTF8).strip(b" \t\r\n") or len(begin) > MAX_RECORD:
            break
    text = begin.removeprefix(codecs.BOM_UTF8)
    del begin
    is_array = text.lstrip(b" \t\r\n").startswith(b"[")

    def rest() -> Iterator[bytes]:
        yield text
        yield from pieces

    return iter(_Array(_decoded(rest(), path), path)) if is_array else _line_values(rest(), path)


def lines(pieces: Iterator[bytes], path: Path) -> Iterator[tuple[bytes, int]]:
    """Yields the lines that are not blank, without their line breaks, and their line numbers from 1.

    Raises:
      InputError: a line is longer than `MAX_RECORD`.
    """
    number, text = 1, b""
    for piece in pieces:
        text += piece
        end = text.rfind(b"\n") + 1
        counted = 0
        for found in _LINE.finditer(text, 0, end):
            number += text.count(b"\n", counted, begin := text.rfind(b"\n", 0, found.start()) + 1)
            counted = begin
            yield text[begin : found.end()], number
        number += text.count(b"\n", counted, end)
        text = text[end:]
        if len(text) > MAX_RECORD:
            raise _too_long(f"{path}:{number}")
    if text:
        yield text, number


def _line_values(pieces: Iterator[bytes], path: Path) -> Iterator[tuple[object, int]]:
    empty, begin = True, f"{path}:"
    for line, number in lines(pieces, path):
        where = f"{begin}{number}"
        try:
            text = line.decode()
        except UnicodeDecodeError:
            raise InputError(f"{where} is not UTF-8 text") from None
        if text.strip():
            empty = False
            yield parse_json(text, where, most_values=MAX_VALUES), number
    if empty:
        raise InputError(f"{path} is empty")


def _decoded(pieces: Iterator[bytes], path: Path) -> Iterator[str]:
    decoder, before = codecs.getincrementaldecoder("utf-8")(), 0
    for piece in pieces:
        try:
            yield decoder.decode(piece)
        except UnicodeDecodeError as error:
            line = before + error.object.count(b"\n", 0, error.start) + 1
            raise InputError(f"{path}:{line} is not UTF-8 text") from None
        before += piece.count(b"\n")
    try:
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        raise InputError(f"{path}:{before + 1} is not UTF-8 text") from None


class _Array:
    """Iterates over the elements of a JSON array whose text comes in pieces."""

    def __init__(self, pieces: Iterator[str], path: Path) -> None:
        self._pieces, self._path = pieces, str(path)
        self._text, self._position = "", 0
        # Line number at `_counted`, column at which `_text` begins, and position up to which lines are counted.
        self._line, self._column, self._counted = 1, 0, 0

    def __iter__(self) -> Iterator[tuple[object, int]]:
        self._after_space()
        self._position += 1
        if self._after_space() == "]":
            self._position += 1
        else:
            while True:
                line = self._line_of(self._position)
                yield self._value(line), line
                after = self._after_space()
                if after not in ("]", ","):
                    ends = "" if after else ", the file ends"
                    raise self._error(self._position, f"expected ',' or the array's ']'{ends}")
                self._position += 1
                if after == "]":
                    break
                self._after_space()
        if self._after_space():
            raise self._error(self._position, "something follows the array's end")

    def _more(self) -> bool:
        """Drops the text that was read and appends the next piece. Returns False if there is none."""
        piece = next(self._pieces, None)
        if piece is None:
            return False
        self._line_of(self._position)
        line_begin = self._text.rfind("\n", 0, self._position) + 1
        self._column = self._position - line_begin if line_begin else self._column + self._position
        self._text = self._text[self._position :] + piece
        self._position = self._counted = 0
        return True

    def _after_space(self) -> str:
        """Skips white space and returns the next character; "" at the end of the text."""
        while True:
            found = _SPACE.match(self._text, self._position)
            assert found is not None
            self._position = found.end()
            if self._position < len(self._text):
                return self._text[self._position]
            if not self._more():
                return ""

    def _value(self, line: int) -> object:
        where = f"{self._path}:{line}"
        while True:
            try:
                value, self._position = parse_value_at(self._text, self._position, where)
            except json.JSONDecodeError as error:
                if not _goes_on(error) or not self._twice(where):
                    raise self._error(error.pos, error.msg, column=True) from None
            else:
                return value

    def _twice(self, where: str) -> bool:
        """Doubles the text that is held, so that a long value is parsed few times. Returns False if no text is left."""
        size = begun = len(self._text) - self._position
        while size < max(2 * begun, 1):
            if size > MAX_RECORD:
                raise _too_long(where)
            if not self._more():
                return size > begun
            size = len(self._text) - self._position
        check_values(self._text[self._position :], where, MAX_VALUES)
        return True

    def _line_of(self, position: int) -> int:
        self._line += self._text.count("\n", self._counted, position)
        self._counted = position
        return self._line

    def _error(self, position: int, problem: str, *, column: bool = False) -> InputError:
        if column:
            begin = self._text.rfind("\n", 0, position) + 1
            problem += f" (column {position - begin + 1 + (0 if begin else self._column)})"
        return InputError(f"{self._path}:{self._line_of(position)} is not JSON: {problem}")


def _goes_on(error: json.JSONDecodeError) -> bool:
    """Returns True if more text may complete the value: the error is at the end, or in an unterminated string."""
    return error.msg.startswith("Unterminated string") or error.pos > len(error.doc) - len("-Infinity")


def _too_long(where: str) -> InputError:
    return InputError(f"{where} holds a value of more than {MAX_RECORD // MEBIBYTE} MiB, and a record has at most that")

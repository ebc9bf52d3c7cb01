"""Values of a JSON array or of JSON lines, each with the line it begins on, read a piece at a time."""

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path

from aligner_jax.data.sources.bounded import MOST_RECORD
from aligner_jax.errors import InputError
from aligner_jax.files.content import MEBIBYTE
from aligner_jax.files.json_text import check_values, parse_json, parse_value_at

# Not str.splitlines: JSON strings may hold U+2028 and the like as they are. Blank lines are passed over at once: a file
# of nothing else has a million in a piece.
_LINE = re.compile(rb"[^ \t\r\n][^\n]*")
MOST_VALUES = 400_000
"""Values of one record."""
_SPACE = re.compile(r"[ \t\r\n]*")


def json_values(pieces: Iterator[bytes], path: Path) -> Iterator[tuple[object, int]]:
    """Yields the elements of a text that is one JSON array, or else its lines, of which blank ones are skipped.

    Args:
      pieces: of the UTF-8 text, in order.
      path: for errors.

    Yields:
      The value, and the number of the line it begins on, from 1.

    Raises:
      InputError: the text is not JSON, or a value is longer than `MOST_RECORD`; names the file and the line.
    """
    begin = b""
    for piece in pieces:
        begin += piece
        if begin.removeprefix(codecs.BOM_UTF8).strip(b" \t\r\n") or len(begin) > MOST_RECORD:
            break
    text = begin.removeprefix(codecs.BOM_UTF8)
    del begin
    is_array = text.lstrip(b" \t\r\n").startswith(b"[")

    def rest() -> Iterator[bytes]:
        yield text
        yield from pieces

    return iter(_Array(_decoded(rest(), path), path)) if is_array else _line_values(rest(), path)


def lines(pieces: Iterator[bytes], path: Path) -> Iterator[tuple[bytes, int]]:
    """Yields each line that is not blank, without its end, and its number from 1.

    Raises:
      InputError: a line is longer than `MOST_RECORD`.
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
        if len(text) > MOST_RECORD:
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
            yield parse_json(text, where, most_values=MOST_VALUES), number
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
    """Elements of an array whose text comes in pieces."""

    def __init__(self, pieces: Iterator[str], path: Path) -> None:
        self._pieces, self._path = pieces, str(path)
        self._text, self._position = "", 0
        # Line on which the text begins, and the place up to which lines are counted.
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
        """Puts the next piece behind what is left of the text; False at the end of all."""
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
        """Goes on to the next character that is no white space, and returns it; "" at the end of all."""
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
        """Makes the value's text twice as long, so that it is parsed few times; False if there is no more of it."""
        size = begun = len(self._text) - self._position
        while size < max(2 * begun, 1):
            if size > MOST_RECORD:
                raise _too_long(where)
            if not self._more():
                return size > begun
            size = len(self._text) - self._position
        check_values(self._text[self._position :], where, MOST_VALUES)
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
    """Returns True if the text may be well up to its end: the error is there, or in a string that has none."""
    return error.msg.startswith("Unterminated string") or error.pos > len(error.doc) - len("-Infinity")


def _too_long(where: str) -> InputError:
    return InputError(
        f"{where} holds a value of more than {MOST_RECORD // MEBIBYTE} MiB, and a record has at most that"
    )

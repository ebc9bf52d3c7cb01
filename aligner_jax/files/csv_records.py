"""Reads the rows of a CSV or TSV file in bounded memory, with their line numbers."""

import codecs
import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from aligner_jax.errors import InputError
from aligner_jax.files.content import MEBIBYTE, open_file

_MAX_COLUMNS = 1000
# Short fields need 15 times the size of their text in memory.
_MAX_ROW = 2 * MEBIBYTE
_PIECE = 2**16
_MOST_BLANK = 300_000
"""Limit on blank lines beyond one for each row, since millions of them take minutes."""


class Row(NamedTuple):
    """Fields of a row, and the first and the last line of the row, from 1."""

    fields: list[str]
    begin: int
    end: int


def csv_records(path: str | Path) -> Iterator[tuple[dict[str, str], str]]:
    """Yields the rows as dicts from column name to field.

    Quoted fields may contain line breaks. Blank lines are skipped.

    Yields:
      The row and its position "file:line", where line is the first line of the row.

    Raises:
      InputError: the file cannot be read or has no rows; two columns have the same name, or there are more than 1,000;
        a row and the header differ in length; a row has more than 2 MiB or a field more than 128 KiB; a quote is not
        closed; or there are far more blank lines than rows.
    """
    with open_file(path) as file:
        for row, line in csv_values(iter(lambda: file.read(_PIECE), b""), path):
            yield row, f"{path}:{line}"


def csv_values(pieces: Iterator[bytes], path: str | Path, delimiter: str = ",") -> Iterator[tuple[dict[str, str], int]]:
    """Yields the rows of a text as `csv_records` does, each with its first line, from 1.

    Args:
      pieces: the text in pieces, in order.
      path: name of the file in error messages.
      delimiter: character between two fields: "," or, of TSV, a tab.

    Raises:
      InputError: see `csv_records`.
    """
    header: list[str] | None = None
    empty, blank = True, 0
    for row in _rows(pieces, path, delimiter):
        where = f"{path}:{row.begin}"
        blank += -1 if row.fields else 1
        if blank > _MOST_BLANK:
            raise InputError(f"{where}: the table has more than {_MOST_BLANK:,} blank lines: remove them")
        if not row.fields:
            continue
        if header is None:
            header = row.fields
            _check_header(header, where)
            continue
        if len(row.fields) != len(header):
            raise InputError(f"{where}: the row has {len(row.fields)} fields, but the header {len(header)}")
        empty = False
        yield dict(zip(header, row.fields, strict=True)), row.begin
    if empty:
        raise InputError(f"{path} {'is empty' if header is None else 'has a header and no rows'}")


def csv_rows(text: BinaryIO, path: str | Path) -> Iterator[Row]:
    """Yields the rows of an open CSV file. A blank line is a row without fields.

    Args:
      text: the open file.
      path: name of the file in error messages.

    Raises:
      InputError: the text is not CSV or UTF-8, or a row has more than 2 MiB. Names the line.
    """
    return _rows(iter(lambda: text.read(_PIECE), b""), path, ",")


def _rows(pieces: Iterator[bytes], path: str | Path, delimiter: str) -> Iterator[Row]:
    lines = _Lines(pieces, path)
    reader, begin = csv.reader(lines, strict=True, delimiter=delimiter), 1
    while True:
        lines.begin, lines.taken = begin, 0
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise InputError(f"{path}:{begin} is not {'CSV' if delimiter == ',' else 'TSV'}: {error}") from None
        if fields is None:
            return
        yield Row(fields, begin, reader.line_num)
        begin = reader.line_num + 1


class _Lines:
    """Iterator over lines with their line breaks, which refuses rows of more than 2 MiB.

    Attributes:
      begin: first line of the current row.
      taken: characters of the current row so far.
    """

    def __init__(self, pieces: Iterator[bytes], path: str | Path) -> None:
        self.begin, self.taken = 1, 0
        self._path = path
        self._lines = self._split(pieces)

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self._take(len(line))
        return line

    def _take(self, size: int) -> None:
        self.taken += size
        if self.taken > _MAX_ROW:
            raise InputError(f"{self._path}:{self.begin}: a row has more than {_MAX_ROW // MEBIBYTE} MiB")

    def _split(self, pieces: Iterator[bytes]) -> Iterator[str]:
        rest = ""
        for text in _decoded(pieces, self._path):
            # The last line is held back: it may end in "\r", the first half of a line break.
            *whole, rest = io.StringIO(rest + text, newline="") if rest or text else [""]
            yield from whole
            if len(rest) > _MAX_ROW:
                self._take(len(rest))
        if rest:
            yield from io.StringIO(rest, newline="")


def _decoded(pieces: Iterator[bytes], path: str | Path) -> Iterator[str]:
    """Yields the decoded text of UTF-8 pieces, without a byte-order mark."""
    decoder, before = codecs.getincrementaldecoder("utf-8-sig")(), 0
    try:
        for piece in pieces:
            yield decoder.decode(piece)
            before += piece.count(b"\n")
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        line = before + error.object.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{line} is not UTF-8 text") from None


def _check_header(names: list[str], where: str) -> None:
    if len(names) > _MAX_COLUMNS:
        raise InputError(f"{where} names {len(names):,} columns, and a file has at most {_MAX_COLUMNS:,}")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"{where} names the column {twice[0]!r} twice")

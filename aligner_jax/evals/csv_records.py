"""Rows of a CSV file, each with the line it begins on, read a piece at a time."""

import codecs
import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from aligner_jax.errors import InputError
from aligner_jax.files.content import MEBIBYTE, open_file

_MOST_COLUMNS = 1000
# Short fields take 15 times their text in memory.
_MOST_ROW = 2 * MEBIBYTE
_PIECE = 2**16


class Row(NamedTuple):
    """Fields of a row, and the lines that it begins and ends on."""

    fields: list[str]
    begin: int
    end: int


def csv_records(path: str | Path) -> Iterator[tuple[dict[str, str], str]]:
    """Yields the rows as dicts by the header's names; quoted fields may hold line breaks, and blank lines are skipped.

    Yields:
      The row, and where it begins: "file:line".

    Raises:
      InputError: the file cannot be read, has no rows, two columns of one name, more than 1,000 columns, a row of
        another length than the header, of more than 2 MiB or with a field of more than 128 KiB, or quotes that are not
        closed.
    """
    header: list[str] | None = None
    empty = True
    with open_file(path) as file:
        for row in csv_rows(file, path):
            where = f"{path}:{row.begin}"
            if not row.fields:
                continue
            if header is None:
                header = row.fields
                _check_header(header, where)
                continue
            if len(row.fields) != len(header):
                raise InputError(f"{where}: the row has {len(row.fields)} fields, but the header {len(header)}")
            empty = False
            yield dict(zip(header, row.fields, strict=True)), where
    if empty:
        raise InputError(f"{path} {'is empty' if header is None else 'has a header and no rows'}")


def csv_rows(text: BinaryIO, path: str | Path) -> Iterator[Row]:
    """Yields the rows of a CSV text that is open; a blank line is one without fields.

    Raises:
      InputError: it is not CSV or UTF-8, or a row has more than 2 MiB; names the line.
    """
    lines = _Lines(iter(lambda: text.read(_PIECE), b""), path)
    reader, begin = csv.reader(lines, strict=True), 1
    while True:
        lines.begin, lines.taken = begin, 0
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise InputError(f"{path}:{begin} is not CSV: {error}") from None
        if fields is None:
            return
        yield Row(fields, begin, reader.line_num)
        begin = reader.line_num + 1


class _Lines:
    """Lines with their ends, of which those since `begin` may have 2 MiB together.

    Attributes:
      begin: the line that the row begins on.
      taken: characters of the row so far.
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
        if self.taken > _MOST_ROW:
            raise InputError(f"{self._path}:{self.begin}: a row has more than {_MOST_ROW // MEBIBYTE} MiB")

    def _split(self, pieces: Iterator[bytes]) -> Iterator[str]:
        rest = ""
        for text in _decoded(pieces, self._path):
            *whole, rest = io.StringIO(rest + text, newline="") if rest or text else [""]
            yield from whole
            if len(rest) > _MOST_ROW:
                self._take(len(rest))
        if rest:
            # It may end with the first half of a line break.
            yield from io.StringIO(rest, newline="")


def _decoded(pieces: Iterator[bytes], path: str | Path) -> Iterator[str]:
    """Texts of pieces of UTF-8, without a byte-order mark."""
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
    if len(names) > _MOST_COLUMNS:
        raise InputError(f"{where} names {len(names):,} columns, and a file has at most {_MOST_COLUMNS:,}")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"{where} names the column {twice[0]!r} twice")

"""Rows of a CSV file with a header, each with the line it begins on."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from aligner_jax.errors import InputError


def csv_records(path: str | Path) -> Iterator[tuple[dict[str, str], str]]:
    """The rows as dicts by the header's names; quoted fields may hold line breaks, and blank lines are skipped.

    Yields:
      The row, and where it begins: "file:line".

    Raises:
      InputError: the file cannot be read, has no rows, two columns of one name, a row of another length than the
        header, or quotes that are not closed.
    """
    path = Path(path)
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    header: list[str] | None = None
    empty, line = True, 1
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise InputError(f"{path}:{line} is not CSV: {error}") from None
        if row is None:
            break
        where, line = f"{path}:{line}", reader.line_num + 1
        if not row:
            continue
        if header is None:
            header = row
            if twice := sorted({name for name in header if header.count(name) > 1}):
                raise InputError(f"{where} names the column {twice[0]!r} twice")
            continue
        if len(row) != len(header):
            raise InputError(f"{where}: the row has {len(row)} fields, but the header {len(header)}")
        empty = False
        yield dict(zip(header, row, strict=True)), where
    if empty:
        raise InputError(f"{path} {'is empty' if header is None else 'has a header and no rows'}")


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}:{data.count(b'\n', 0, error.start) + 1} is not UTF-8 text") from None

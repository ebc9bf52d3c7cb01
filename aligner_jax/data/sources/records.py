"""Reads the records of a local file and their places: JSON, CSV, TSV, plain text or Parquet, compressed or not."""

import dataclasses
import itertools
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

from aligner_jax.data.sources.bounded import FREE, check_ratio, content_pieces
from aligner_jax.data.sources.formats import DamageError, FormatError
from aligner_jax.data.sources.json_records import json_values
from aligner_jax.data.sources.parquet import open_parquet
from aligner_jax.data.sources.parquet_footer import MAGIC
from aligner_jax.data.sources.text_records import text_values
from aligner_jax.data.sources.values import kind
from aligner_jax.errors import InputError
from aligner_jax.files.content import open_file
from aligner_jax.files.csv_records import csv_values

_RECORD = 300
"""Bytes of memory that an example takes besides its text."""
_MAX_RATIO_OF_ROWS = 30
"""Bound on the memory of examples by that of their text: rows of CSV, TSV and texts may have 10 bytes on average."""
JSON, CSV, TSV, TEXT, PARQUET, HUB = "JSON", "CSV", "TSV", "text", "Parquet", "hub"
"""Forms of data; those of files are told by the first bytes and the suffix."""
SUFFIXES = {
    ".jsonl": JSON, ".json": JSON, ".ndjson": JSON, ".csv": CSV, ".tsv": TSV, ".txt": TEXT, ".parquet": PARQUET,
}  # fmt: skip
COMPRESSED = (".gz", ".xz")
_ZIP = b"PK\3\4"
_JSON_BEGIN = re.compile(rb"(?:\xef\xbb\xbf)?[ \t\r\n]*(?:\[[ \t\r\n]*)?\{[ \t\r\n]*(?:\"|\}|\Z)")


@dataclasses.dataclass(frozen=True)
class Records:
    """Objects of a file.

    Attributes:
      rows: (object, place), where the place is "file:line" or, for Parquet, "file, row N". The file is read during
        iteration, which raises InputError if the file cannot be read, is damaged, or contains a value that is not an
        object.
      form: `JSON`, `CSV`, `TSV`, `TEXT`, `PARQUET` or `HUB`.
      unread: number of rows with a value, by the name of each column that was not requested.
    """

    rows: Iterator[tuple[dict, str]]
    form: str
    unread: Mapping[str, int] = dataclasses.field(default_factory=dict)


def read_records(path: Path | str) -> Iterator[tuple[dict, str]]:
    """Yields the objects of a file: a JSON array, JSON lines (blank lines are skipped), CSV, TSV, text or Parquet.

    The file may be compressed with gzip or xz; lines are counted in the decompressed text. JSON objects and Parquet are
    detected by the first bytes, whatever the file's name; other files are what their suffix says, and JSON without one.
    The first row of CSV and TSV names the fields; a text is one object {"text": …} per document, see `text_values`. The
    file is read piece by piece.

    Yields:
      An object and its place: "file:line" or, for Parquet, "file, row N".

    Raises:
      InputError: the file cannot be read, has no record, contains a value that is not an object or a record of more
        than 4 MiB, or decompresses to far more than text does.
    """
    return open_records(path).rows


def open_records(path: Path | str, columns: Collection[str] | None = None) -> Records:
    """Opens a file as `read_records` does; of Parquet, only `columns` are read (None reads all).

    Raises:
      InputError: the file cannot be read.
    """
    path = Path(path)
    with open_file(path) as file:
        begin, size = file.read(len(MAGIC)), os.fstat(file.fileno()).st_size
    if begin == _ZIP:
        raise FormatError(
            f"{path} is a zip archive, as spreadsheets (.xlsx) are too: save the sheet as CSV, or unpack it"
        )
    if begin == MAGIC or (begin and ".parquet" in path.suffixes):
        table = open_parquet(path, columns)
        return Records(_placed(table.rows, ", row ", path, _bound(size, path)), PARQUET, table.unread)
    form = form_of_name(path)
    text = _Text(path)
    pieces = text.pieces()
    first = next(pieces, b"")
    whole = itertools.chain([first], pieces)
    if form in (None, PARQUET) or _JSON_BEGIN.match(first):
        form = JSON
    if form == TEXT:
        values = text_values(text.pieces, path)
    elif form == JSON:
        values = json_values(whole, path)
    else:
        values = csv_values(whole, path, "," if form == CSV else "\t")
    return Records(_placed(values, ":", path, _bound(size, path) if form == JSON else text.check_records), form)


def form_of_name(path: Path) -> str | None:
    """Returns the form that a file's suffix tells, beneath that of compression; None if it tells none."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    while suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return SUFFIXES.get(suffixes[-1]) if suffixes else None


class _Text:
    """The content of a file, whose bytes are counted."""

    def __init__(self, path: Path) -> None:
        self._path, self._bytes = path, 0

    def pieces(self) -> Iterator[bytes]:
        """Yields the content in order, decompressed."""
        self._bytes = 0
        for piece in content_pieces(self._path):
            self._bytes += len(piece)
            yield piece

    def check_records(self, count: int) -> None:
        """Refuses texts of many tiny records, such as rows of one character. Raises DamageError."""
        if _RECORD * count > FREE + _MAX_RATIO_OF_ROWS * self._bytes:
            raise DamageError(
                f"{self._path} has {count:,} records and more in {self._bytes:,} bytes, which no file of examples does"
            )


def _bound(size: int, path: Path) -> Callable[[int], None]:
    return lambda count: check_ratio(_RECORD * count, size, path)


def _placed(
    values: Iterator[tuple[object, int]], mark: str, path: Path, check_records: Callable[[int], None]
) -> Iterator[tuple[dict, str]]:
    count, begin = 0, f"{path}{mark}"
    for value, number in values:
        if not isinstance(value, dict):
            raise InputError(
                f"{begin}{number} holds {kind(value)} where an object (a record with named fields) belongs"
            )
        count += 1
        if not count % 1024:
            check_records(count)
        yield value, f"{begin}{number}"
    if not count:
        raise InputError(f"{path} holds no records")

"""Records of a local file, each with the place it stands at: JSON, JSON lines or Parquet, compressed or not."""

import dataclasses
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from aligner_jax.data.sources.bounded import check_ratio, content_pieces
from aligner_jax.data.sources.json_records import json_values
from aligner_jax.data.sources.parquet import open_parquet
from aligner_jax.data.sources.parquet_footer import MAGIC
from aligner_jax.data.sources.values import kind
from aligner_jax.errors import InputError
from aligner_jax.files.content import open_file

_RECORD = 300
"""Bytes that an example takes beside its text."""


@dataclasses.dataclass(frozen=True)
class Records:
    """The objects of a file.

    Attributes:
      rows: each object and where it begins: "file:line", of Parquet "file, row N". Read when they are asked for; raises
        InputError where the file cannot be read, is damaged, or has something in it that is not an object.
      unread: columns that were not asked for, and how many rows have something in them.
    """

    rows: Iterator[tuple[dict, str]]
    unread: Mapping[str, int] = dataclasses.field(default_factory=dict)


def read_records(path: Path | str) -> Iterator[tuple[dict, str]]:
    """Yields the objects of a file: a JSON array, a JSON object a line (blank lines are skipped), or Parquet.

    The file may be compressed by gzip or xz; lines are those of the text in it. What a file is, its first bytes say, so
    that its name need not. It is read a piece at a time.

    Yields:
      The object, and where it begins: "file:line", of Parquet "file, row N".

    Raises:
      InputError: the file cannot be read, holds no record, has something in it that is not an object, or a record of
        more than 4 MiB, or is far larger when decompressed than text can be.
    """
    return open_records(path).rows


def open_records(path: Path | str, columns: Collection[str] | None = None) -> Records:
    """Returns the objects of a file as `read_records`; of Parquet with these columns only.

    Raises:
      InputError: the file cannot be read.
    """
    path = Path(path)
    with open_file(path) as file:
        begin, size = file.read(len(MAGIC)), os.fstat(file.fileno()).st_size
    if begin == MAGIC or (begin and ".parquet" in path.suffixes):
        table = open_parquet(path, columns)
        return Records(_placed(table.rows, ", row ", size, path), table.unread)
    return Records(_placed(json_values(content_pieces(path), path), ":", size, path))


def _placed(values: Iterator[tuple[object, int]], mark: str, size: int, path: Path) -> Iterator[tuple[dict, str]]:
    count, begin = 0, f"{path}{mark}"
    for value, number in values:
        if not isinstance(value, dict):
            raise InputError(
                f"{begin}{number} holds {kind(value)} where an object (a record with named fields) belongs"
            )
        count += 1
        if not count % 1024:
            check_ratio(_RECORD * count, size, path)
        yield value, f"{begin}{number}"
    if not count:
        raise InputError(f"{path} holds no records")

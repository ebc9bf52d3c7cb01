"""Records of a local file, each with the place it stands at: JSON, JSON lines or Parquet, compressed or not."""

import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path

from aligner_jax.data.sources.json_records import json_values
from aligner_jax.data.sources.parquet import MAGIC, parquet_rows
from aligner_jax.data.sources.values import kind
from aligner_jax.errors import InputError


def read_records(path: Path | str) -> Iterator[tuple[dict, str]]:
    """The objects of a file: a JSON array, a JSON object a line (blank lines are skipped), or Parquet.

    The file may be compressed by gzip or xz; lines are those of the text in it. What a file is, its first bytes say, so
    that its name need not.

    Yields:
      The object, and where it begins: "file:line", of Parquet "file, row N".

    Raises:
      InputError: the file cannot be read, holds no record, or has something in it that is not an object.
    """
    path = Path(path)
    data = _content(path)
    empty = True
    for record, where in _parquet(data, path) if _is_parquet(data, path) else _json(data, path):
        empty = False
        yield record, where
    if empty:
        raise InputError(f"{path} {'holds no records' if data.strip() else 'is empty'}")


def _is_parquet(data: bytes, path: Path) -> bool:
    return data.startswith(MAGIC) or (bool(data) and ".parquet" in path.suffixes)


def _parquet(data: bytes, path: Path) -> Iterator[tuple[dict, str]]:
    for row, number in parquet_rows(data, path):
        yield row, f"{path}, row {number}"


def _json(data: bytes, path: Path) -> Iterator[tuple[dict, str]]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}:{data.count(b'\n', 0, error.start) + 1} is not UTF-8 text") from None
    for value, line in json_values(text, path):
        if not isinstance(value, dict):
            raise InputError(f"{path}:{line} holds {kind(value)} where an object (a record with named fields) belongs")
        yield value, f"{path}:{line}"


def _content(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    for magic, suffix, decompress in _COMPRESSIONS:
        if data.startswith(magic) or (data and path.suffix == suffix):
            try:
                return decompress(data)
            except EOFError:
                raise InputError(f"{path} is cut short: its compressed data end too early") from None
            except (OSError, zlib.error, lzma.LZMAError) as error:
                raise InputError(f"{path} cannot be decompressed: {error}") from None
    return data


def _unxz(data: bytes) -> bytes:
    # lzma.decompress does not tell damaged data from missing ones.
    return lzma.open(io.BytesIO(data)).read()


_COMPRESSIONS = ((b"\x1f\x8b", ".gz", gzip.decompress), (b"\xfd7zXZ\x00", ".xz", _unxz))

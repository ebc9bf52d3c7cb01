"""Checks the page headers of a Parquet file before pyarrow decompresses the pages.

A page of a hundred bytes may claim to decompress to 2 GiB, and a text that is stored once may fill a million rows. The
page headers show both (parquet.thrift, `PageHeader`), and reading them is cheap compared with reading the pages.
"""

import itertools
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

from aligner_jax.data.sources.bounded import FREE, MAX_RATIO, check_ratio
from aligner_jax.data.sources.parquet_footer import Chunk, Footer
from aligner_jax.errors import InputError
from aligner_jax.files.content import MEBIBYTE
from aligner_jax.files.thrift import Malformed, Read, read_struct

_MAX_ROWS = 1024
_BATCH = 8 * MEBIBYTE
_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3
_DELTA_BYTE_ARRAY = 7
_HEADER = 64 * 1024
_CODECS = {1: "snappy", 2: "gzip", 4: "brotli", 6: "zstd", 7: "lz4_raw"}


class Layout(NamedTuple):
    """Number of rows to read at once, and paths of the columns whose texts should stay dictionary-encoded."""

    rows: int
    as_dictionary: list[str]


class Column(NamedTuple):
    """A leaf column: its path in the schema, and True if it is inside a list."""

    path: str
    repeated: bool


class _Unpacked(NamedTuple):
    """A chunk: its decompressed bytes, bytes of its longest text that may repeat, and number of values that may."""

    unpacked: int
    longest: int
    repeating: int


def check_pages(file: BinaryIO, size: int, footer: Footer, columns: Mapping[int, Column], path: Path) -> Layout:
    """Checks the page headers of some columns, and returns the layout that reads them in little memory.

    Args:
      file: open Parquet file.
      size: size of the file, in bytes.
      footer: footer of the file.
      columns: leaf columns to read, by index.
      path: path of the file, for error messages.

    Raises:
      InputError: headers are damaged, contradict the footer, or describe more data than a file of examples has.
    """
    most = MEBIBYTE + 16 * size
    if footer.num_rows > most:
        raise InputError(f"{path} may be damaged: it has {footer.num_rows:,} rows in {size:,} bytes")
    taken: list[tuple[int, int]] = []
    rows, as_dictionary, total = _MAX_ROWS, [], 0
    for number, column in columns.items():
        for group in footer.groups:
            if not group.num_rows:
                continue
            chunk = group.chunks[number]
            try:
                if chunk.num_values > (most if column.repeated else group.num_rows):
                    raise Malformed(f"has {chunk.num_values:,} values in {group.num_rows:,} rows")
                found = _chunk(file, chunk, column.repeated)
            except (Malformed, struct.error) as error:
                raise InputError(f"{path} is damaged: its column {column.path!r} {error}") from None
            taken.append((chunk.begin, chunk.end))
            check_ratio(total := total + found.unpacked, size, path)
            mean = found.unpacked // group.num_rows
            rows = min(rows, max(_BATCH // max(mean, 1), 1))
            if not column.repeated:
                rows = min(rows, max(_BATCH // max(found.longest, 1), 1))
            elif found.repeating * found.longest > 4 * _BATCH + 8 * size and column.path not in as_dictionary:
                as_dictionary.append(column.path)
    taken.sort()
    if any(first[1] > second[0] for first, second in itertools.pairwise(taken)):
        raise InputError(f"{path} is damaged: two of its columns are at the same place")
    return Layout(rows, as_dictionary)


def _chunk(file: BinaryIO, chunk: Chunk, repeated: bool) -> _Unpacked:
    at, end, values = chunk.begin, chunk.end, 0
    unpacked = longest = repeating = 0
    in_dictionary = 0
    while values < chunk.num_values:
        header, at = _header(file, at, end)
        size, packed = _number(header, 2), _number(header, 3)
        if packed > end - at:
            raise Malformed("has a page that goes on behind its end")
        if size > FREE + MAX_RATIO * packed:
            raise Malformed(f"has a page of {packed:,} bytes that should become {size:,}")
        unpacked += size
        kind = header.get(1)
        if kind == _DICTIONARY:
            held = _number(_part(header, 7), 1)
            small = size <= _BATCH // _MAX_ROWS
            in_dictionary = size if small else _longest(_at(file, at, packed), size, held, chunk)
        elif kind in (_DATA, _DATA_V2):
            page = _part(header, 5 if kind == _DATA else 8)
            count = _number(page, 1)
            values += count
            encoding = _number(page, 2 if kind == _DATA else 4)
            if encoding == _DELTA_BYTE_ARRAY and repeated:
                raise Malformed("has lists of texts in the encoding DELTA_BYTE_ARRAY, which is not read")
            # In this encoding a text may share its prefix with the text before it.
            repeats = size if encoding == _DELTA_BYTE_ARRAY else in_dictionary if encoding in (2, 8) else 0
            longest, repeating = max(longest, repeats), repeating + (count if repeats else 0)
        at += packed
    if values != chunk.num_values:
        raise Malformed(f"has {values:,} values and not {chunk.num_values:,}")
    return _Unpacked(unpacked, longest, repeating)


def _header(file: BinaryIO, at: int, end: int) -> tuple[dict[int, object], int]:
    data = _at(file, at, min(end - at, 256))
    try:
        read = read_struct(data)
    except Malformed:
        # A header with long statistics needs more than 256 bytes.
        read = read_struct(_at(file, at, min(end - at, _HEADER)))
    assert isinstance(read, Read)
    return read.fields, at + read.end


def _longest(packed: bytes, size: int, count: int, chunk: Chunk) -> int:
    """Returns the bytes of the longest text in a dictionary page."""
    import pyarrow

    if not chunk.is_text:
        return 0
    codec = _CODECS.get(chunk.codec)
    try:
        data = bytes(pyarrow.Codec(codec).decompress(packed, size)) if codec else packed
    except (pyarrow.ArrowException, OSError, ValueError):
        # The page is damaged, and the reader will report it.
        return size
    if codec is None and chunk.codec != 0:
        return size
    at = longest = 0
    for _ in range(count):
        (length,) = _LENGTH.unpack_from(data, at)
        longest = length if length > longest else longest
        at += 4 + length
    return min(longest, size)


_LENGTH = struct.Struct("<I")


def _at(file: BinaryIO, at: int, size: int) -> bytes:
    file.seek(at)
    return file.read(size)


def _part(fields: dict[int, object], number: int) -> dict[int, object]:
    part = fields.get(number)
    if not isinstance(part, dict):
        raise Malformed("has a page without its header")
    return part


def _number(fields: dict[int, object], number: int) -> int:
    value = fields.get(number)
    if type(value) is not int or value < 0:
        raise Malformed("has a damaged page header")
    return value

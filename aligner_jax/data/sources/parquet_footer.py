"""Reads a Parquet file's footer: row groups and the metadata of their columns (parquet.thrift, `FileMetaData`).

pyarrow ends the process when it is asked for column metadata that are damaged, so this module reads them itself.
"""

from pathlib import Path
from typing import BinaryIO, NamedTuple

from aligner_jax.errors import InputError
from aligner_jax.files.content import MEBIBYTE
from aligner_jax.files.thrift import Malformed, Struct, read_struct

MAGIC = b"PAR1"
"""Magic bytes at both ends of a Parquet file."""

_MAX_FOOTER = 16 * MEBIBYTE
_INT32, _INT64, _BYTE_ARRAY = 1, 2, 6


class Chunk(NamedTuple):
    """Metadata of a column in one row group.

    Attributes:
      begin, end: byte offsets of the pages in the file.
      num_values: number of values, including nulls.
      is_text: True if the values are byte strings of any length.
      codec: code of the compression (parquet.thrift, `CompressionCodec`).
      nulls: number of null values; None if the footer lacks it.
      least, most: least and greatest value of an integer column; None if the footer lacks it.
    """

    begin: int
    end: int
    num_values: int
    is_text: bool
    codec: int
    nulls: int | None
    least: int | None
    most: int | None


class Group(NamedTuple):
    """A row group, with one chunk per leaf column."""

    num_rows: int
    chunks: list[Chunk]


class Footer(NamedTuple):
    """Total number of rows, row groups, and the footer's size in bytes."""

    num_rows: int
    groups: list[Group]
    size: int


def read_footer(file: BinaryIO, size: int, path: Path) -> Footer:
    """Returns the footer of an open file of `size` bytes.

    Raises:
      InputError: the file has no footer, or the footer is damaged, contradicts itself or has offsets outside the file.
    """
    file.seek(max(size - 8, 0))
    end = file.read(8)
    length = int.from_bytes(end[:4], "little")
    begin = f"{path} cannot be read as Parquet: "
    if size < 12 or end[4:] != MAGIC:
        raise InputError(f"{begin}it does not end with {MAGIC.decode()}, so it may be cut short")
    if not 0 < length <= min(size - 12, _MAX_FOOTER):
        raise InputError(f"{begin}its metadata should be {length:,} of its {size:,} bytes")
    file.seek(size - 8 - length)
    try:
        # Bounds the elements by the length: a structure takes several bytes.
        fields = read_struct(file.read(length), most_elements=max(length // 6, 1000)).fields
        num_rows = _number(fields, 3)
        groups = [_group(each, size - 8 - length) for each in _structs(fields, 4)] if 4 in fields else []
        if num_rows != sum(group.num_rows for group in groups):
            raise Malformed(f"tells of {num_rows:,} rows, and its row groups have others")
    except Malformed as error:
        raise InputError(f"{begin}its metadata are damaged, since something in them {error}") from None
    return Footer(num_rows, groups, length)


def _group(fields: Struct, end_of_data: int) -> Group:
    num_rows = _number(fields, 3)
    return Group(num_rows, [_chunk(each, end_of_data, num_rows) for each in _structs(fields, 1)])


def _chunk(fields: Struct, end_of_data: int, num_rows: int) -> Chunk:
    described = fields.get(3)
    if not isinstance(described, dict) or 1 in fields:
        raise Malformed("is a column of another file")
    kind, statistics = described.get(1), described.get(12)
    known = statistics if isinstance(statistics, dict) else {}
    begin, num_values = _number(described, 9), _number(described, 5)
    # Offset 0 means that there is no dictionary page.
    if described.get(11):
        begin = min(begin, _number(described, 11))
    end = begin + _number(described, 7)
    if num_rows and not 4 <= begin <= end <= end_of_data:
        raise Malformed("lies outside of the file")
    if num_values < num_rows:
        raise Malformed(f"has {num_values:,} values in {num_rows:,} rows")
    nulls = known.get(3)
    return Chunk(
        begin, end, num_values, kind == _BYTE_ARRAY, _number(described, 4), nulls if isinstance(nulls, int) else None,
        _whole(known.get(6), kind), _whole(known.get(5), kind),
    )  # fmt: skip


def _whole(value: object, kind: object) -> int | None:
    size = 4 if kind == _INT32 else 8 if kind == _INT64 else 0
    return (
        int.from_bytes(value, "little", signed=True)
        if size and isinstance(value, bytes) and len(value) == size
        else None
    )


def _structs(fields: Struct, number: int) -> list[Struct]:
    values = fields.get(number)
    if not isinstance(values, list):
        raise Malformed("lacks a list")
    structs = [value for value in values if isinstance(value, dict)]
    if len(structs) < len(values):
        raise Malformed("lacks a structure")
    return structs


def _number(fields: Struct, number: int) -> int:
    value = fields.get(number)
    if type(value) is not int or value < 0:
        raise Malformed("lacks a number")
    return value

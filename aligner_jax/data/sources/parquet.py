"""Reads the rows of a Parquet file within bounded memory."""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from aligner_jax.data.sources.bounded import MAX_RECORD, check_ratio
from aligner_jax.data.sources.parquet_columns import check_times, filled
from aligner_jax.data.sources.parquet_footer import Footer, read_footer
from aligner_jax.data.sources.parquet_pages import Column, check_pages
from aligner_jax.errors import InputError
from aligner_jax.files.content import MEBIBYTE, open_file

# Types that are read inside lists and structures. Dates and times are not among them: Python has no value for a date in
# the year 12,000 or an unknown time zone.
_PLAIN_TYPES = ("BOOLEAN", "INT32", "INT64", "FLOAT", "DOUBLE", "BYTE_ARRAY")
_PLAIN_MEANINGS = ("NONE", "STRING", "INT", "ENUM", "JSON", "NULL", "UNKNOWN")


class Table(NamedTuple):
    """Rows of a Parquet file.

    Attributes:
      rows: (row, row number from 1).
      unread: number of rows with a value, by the name of each column that is not read.
    """

    rows: Iterator[tuple[dict, int]]
    unread: Mapping[str, int]


def open_parquet(path: Path, columns: Collection[str] | None = None) -> Table:
    """Returns the rows of a Parquet file as objects with named fields.

    Only the requested columns are decompressed, some rows at a time. Values inside lists and structures are left out
    unless they are text, numbers or flags.

    Args:
      path: Parquet file.
      columns: names of the columns to read; None reads all.

    Raises:
      InputError: the file is not Parquet, is damaged (iterating over the rows may raise this too), or describes more
        data than a file of examples has; the message names the file.
    """
    rows = _Rows(path, columns)
    return Table(iter(rows), rows.unread)


class _Rows:
    """Iterates over the rows of one file."""

    def __init__(self, path: Path, columns: Collection[str] | None) -> None:
        # Imported here, because most runs read no Parquet and the import is slow.
        import pyarrow
        import pyarrow.parquet

        self._path, self._pyarrow = path, pyarrow
        with open_file(path) as file:
            self._size = os.fstat(file.fileno()).st_size
            self._open(file, columns)

    def _open(self, file: BinaryIO, columns: Collection[str] | None) -> None:
        pyarrow, path = self._pyarrow, self._path
        footer = read_footer(file, self._size, path)
        # Bound the memory that pyarrow allocates before it notices that a list is damaged.
        limits: dict[str, Any] = {
            "thrift_string_size_limit": footer.size,
            "thrift_container_size_limit": max(footer.size // 6, 1000),
            "page_checksum_verification": True,
            "pre_buffer": False,
        }
        try:
            table = pyarrow.parquet.ParquetFile(pyarrow.OSFile(str(path)), **limits)
            schema = table.metadata.schema
            leaves = [schema.column(number) for number in range(len(schema))]
            if any(len(group.chunks) != len(leaves) for group in footer.groups):
                raise InputError(f"{path} is damaged: a row group has not the columns of the file")
            fields = list(table.schema_arrow)
            _check_names([field.name for field in fields], path)
            read = self._leaves(leaves, columns)
            self._paths = [leaves[number].path for number in read]
            self.unread = self._unread(footer, fields, leaves)
            wanted = {i: Column(leaves[i].path, leaves[i].max_repetition_level > 0) for i in read}
            layout = check_pages(file, self._size, footer, wanted, path)
            if layout.as_dictionary:
                reader = pyarrow.OSFile(str(path))
                table = pyarrow.parquet.ParquetFile(reader, read_dictionary=layout.as_dictionary, **limits)
        except Exception as error:  # The reader raises many types for damaged files.
            raise self._error(error, 0) from None
        self._table, self._rows = table, layout.rows

    def __iter__(self) -> Iterator[tuple[dict, int]]:
        number = total = 0
        try:
            for batch in self._table.iter_batches(self._rows, columns=self._paths, use_threads=False):
                total += (held := _text_bytes(self._pyarrow, batch))
                check_ratio(total, self._size, self._path)
                if held > 2 * MAX_RECORD:
                    self._check_rows(batch, number)
                for row in batch.to_pylist():
                    number += 1
                    yield row, number
        except Exception as error:  # The reader raises many types for damaged files.
            raise self._error(error, number) from None

    def _leaves(self, leaves: Sequence[Any], columns: Collection[str] | None) -> list[int]:
        """Returns the indices of the leaf columns to read."""
        found = []
        for number, leaf in enumerate(leaves):
            name, _, inside = leaf.path.partition(".")
            plain = leaf.physical_type in _PLAIN_TYPES and leaf.logical_type.type in _PLAIN_MEANINGS
            if (columns is None or name in columns or leaf.path in columns) and (plain or not inside):
                found.append(number)
        # If the file has none of the columns, all are read, so that the error can list the fields of its first row.
        return found or list(range(len(leaves)))

    def _unread(self, footer: Footer, fields: Sequence[Any], leaves: Sequence[Any]) -> dict[str, int]:
        """Returns the number of rows with a value, by unread column. Refuses impossible times."""
        read = {path.partition(".")[0] for path in self._paths} | set(self._paths)
        flat = {leaf.path: number for number, leaf in enumerate(leaves)}
        unread = {}
        for field in fields:
            if field.name in read:
                continue
            number = flat.get(field.name)
            unread[field.name] = footer.num_rows if number is None else filled(footer, number)
            if number is not None:
                check_times(footer, number, field.type, field.name, self._path)
        return unread

    def _check_rows(self, batch: Any, number: int) -> None:
        for i in range(batch.num_rows):
            if _text_bytes(self._pyarrow, batch.slice(i, 1)) > MAX_RECORD:
                raise InputError(
                    f"{self._path}, row {number + i + 1} holds more than {MAX_RECORD // MEBIBYTE} MiB, and a record "
                    "has at most that"
                )

    def _error(self, error: Exception, number: int) -> InputError:
        if isinstance(error, InputError):
            return error
        if isinstance(error, UnicodeDecodeError):
            last = number + getattr(self, "_rows", 1)
            return InputError(f"{self._path}, among rows {number + 1} to {last}: a column of text is not UTF-8")
        reason = str(error).partition("\n")[0].partition(". ")[0].rstrip(".") or type(error).__name__
        after = f" after row {number}" if number else ""
        return InputError(f"{self._path} cannot be read as Parquet{after}: {reason}")


def _check_names(names: list[str], path: Path) -> None:
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{path} has two columns of the name {twice!r}")


def _text_bytes(pyarrow: Any, values: Any) -> int:
    """Returns the bytes of values as Python objects: a text in a dictionary counts once for every use."""
    if isinstance(values, pyarrow.RecordBatch):
        return sum(_text_bytes(pyarrow, column) for column in values.columns)
    if isinstance(values, pyarrow.DictionaryArray):
        import pyarrow.compute

        compute: Any = pyarrow.compute
        kind = values.dictionary.type
        if not pyarrow.types.is_string(kind) and not pyarrow.types.is_binary(kind):
            return values.nbytes
        lengths = compute.binary_length(values.dictionary).take(values.indices.drop_null())
        return compute.sum(lengths).as_py() or 0
    if isinstance(values, pyarrow.StructArray):
        return sum(_text_bytes(pyarrow, part) for part in values.flatten())
    if isinstance(values, pyarrow.ListArray | pyarrow.LargeListArray):
        return values.nbytes if _is_flat(pyarrow, values.type) else _text_bytes(pyarrow, values.flatten())
    return values.nbytes


def _is_flat(pyarrow: Any, kind: Any) -> bool:
    """Returns True if a type contains no dictionary."""
    parts = [kind.field(i).type for i in range(kind.num_fields)]
    return not pyarrow.types.is_dictionary(kind) and all(_is_flat(pyarrow, part) for part in parts)

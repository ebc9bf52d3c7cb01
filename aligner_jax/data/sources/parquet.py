"""Rows of a Parquet file."""

from collections.abc import Iterator
from pathlib import Path

from aligner_jax.errors import InputError

MAGIC = b"PAR1"
"""What a Parquet file begins and ends with."""

_BATCH = 1024


def parquet_rows(data: bytes, path: Path) -> Iterator[tuple[dict, int]]:
    """The rows of a Parquet file's content as objects with named fields.

    Yields:
      The row, and its number, from 1.

    Raises:
      InputError: it is not Parquet, or is damaged; names the file.
    """
    # Here, because most runs read no Parquet and the import takes a while.
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        for batch in parquet.ParquetFile(pyarrow.BufferReader(data)).iter_batches(batch_size=_BATCH):
            for row in batch.to_pylist():
                number += 1
                yield row, number
    except UnicodeDecodeError:
        raise InputError(
            f"{path}, among rows {number + 1} to {number + _BATCH}: a column of text is not UTF-8"
        ) from None
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0].rstrip(".")
        after = f" after row {number}" if number else ""
        raise InputError(f"{path} cannot be read as Parquet{after}: {reason}") from None

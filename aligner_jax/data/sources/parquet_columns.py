"""Columns of a Parquet file that are not read, as far as its metadata tell of them."""

import zoneinfo
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aligner_jax.errors import InputError

_SECONDS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_DAY = 86_400
# The years 1 to 9999.
_FIRST, _LAST = -62_135_596_800, 253_402_300_799
_LONGEST = 999_999_999 * _DAY


def filled(table: Any, name: str) -> int:
    """Returns in how many rows a column has a value, where the metadata say it, or else the number of rows."""
    known = list(_statistics(table, name))
    if not known or not all(each is not None and each.has_null_count for each in known):
        return table.metadata.num_rows
    return max(table.metadata.num_rows - sum(each.null_count for each in known), 0)


def check_times(table: Any, name: str, path: Path) -> None:
    """Refuses a file in which a column's times are none: one such is a sign of damage.

    Args:
      table: pyarrow's `ParquetFile`.
      name: of the column.
      path: for errors.

    Raises:
      InputError: the least or greatest value is outside of the years 1 to 9999, a duration is longer than a thousand
        million days, or the time zone is unknown.
    """
    from pyarrow import types

    kind = table.schema_arrow.field(name).type
    if types.is_timestamp(kind):
        unit, least, most = _SECONDS[kind.unit], _FIRST, _LAST
        zones = zoneinfo.available_timezones()
        # A system may have no time zones at all.
        if kind.tz is not None and kind.tz[:1] not in "+-" and zones and kind.tz not in zones:
            raise _wrong(path, name, f"is in the time zone {kind.tz!r}, which is none")
    elif types.is_date32(kind):
        unit, least, most = 1 / _DAY, _FIRST, _LAST
    elif types.is_duration(kind):
        unit, least, most = _SECONDS[kind.unit], -_LONGEST, _LONGEST
    else:
        return
    for each in _statistics(table, name):
        if each is not None and each.has_min_max:
            for value in (each.min_raw, each.max_raw):
                if isinstance(value, int) and not least <= value / unit <= most:
                    raise _wrong(path, name, f"holds the {kind} {value}, which is no time")


def _statistics(table: Any, name: str) -> Iterator[Any]:
    schema, metadata = table.metadata.schema, table.metadata
    for number in range(len(schema)):
        if schema.column(number).path == name:
            for group in map(metadata.row_group, range(metadata.num_row_groups)):
                chunk = group.column(number)
                yield chunk.statistics if chunk.is_stats_set else None


def _wrong(path: Path, name: str, problem: str) -> InputError:
    return InputError(
        f"{path} may be damaged: its column {name!r}, which is not needed, {problem}; write the file without it"
    )

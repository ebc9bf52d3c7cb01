"""Checks the columns of a Parquet file that are not read, by the file's metadata."""

import zoneinfo
from pathlib import Path
from typing import Any

from aligner_jax.data.sources.parquet_footer import Footer
from aligner_jax.errors import InputError

_SECONDS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_DAY = 86_400
# Begin of the year 1 and end of the year 9999, in seconds since 1970.
_FIRST, _LAST = -62_135_596_800, 253_402_300_799
_LONGEST = 999_999_999 * _DAY


def filled(footer: Footer, number: int) -> int:
    """Returns the number of rows with a value in a flat column; counts all rows of groups without null counts."""
    nulls = [group.chunks[number].nulls for group in footer.groups]
    return max(footer.num_rows - sum(count for count in nulls if count is not None), 0)


def check_times(footer: Footer, number: int, kind: Any, name: str, path: Path) -> None:
    """Refuses a column with impossible times, which are a sign of damage.

    Args:
      footer: footer of the file.
      number: index of the column.
      kind: pyarrow type of the column.
      name: name of the column, for error messages.
      path: path of the file, for error messages.

    Raises:
      InputError: the least or greatest value is outside the years 1 to 9999, a duration is longer than 999,999,999
        days, or the time zone is unknown.
    """
    from pyarrow import types

    if types.is_timestamp(kind):
        unit, least, most = _SECONDS[kind.unit], _FIRST, _LAST
        zones = zoneinfo.available_timezones()
        # The set is empty on systems without a time zone database.
        if kind.tz is not None and kind.tz[:1] not in "+-" and zones and kind.tz not in zones:
            raise _wrong(path, name, f"is in the time zone {kind.tz!r}, which is none")
    elif types.is_date32(kind):
        unit, least, most = 1 / _DAY, _FIRST, _LAST
    elif types.is_duration(kind):
        unit, least, most = _SECONDS[kind.unit], -_LONGEST, _LONGEST
    else:
        return
    for group in footer.groups:
        for value in (group.chunks[number].least, group.chunks[number].most):
            if value is not None and not least <= value / unit <= most:
                raise _wrong(path, name, f"holds the {kind} {value}, which is no time")


def _wrong(path: Path, name: str, problem: str) -> InputError:
    return InputError(
        f"{path} may be damaged: its column {name!r}, which is not needed, {problem}; write the file without it"
    )

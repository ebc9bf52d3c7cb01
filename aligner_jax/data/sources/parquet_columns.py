"""Columns of a Parquet file that are not read, as far as its metadata tell of them."""

import zoneinfo
from pathlib import Path
from typing import Any

from aligner_jax.data.sources.parquet_footer import Footer
from aligner_jax.errors import InputError

_SECONDS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_DAY = 86_400
# The years 1 to 9999.
_FIRST, _LAST = -62_135_596_800, 253_402_300_799
_LONGEST = 999_999_999 * _DAY


def filled(footer: Footer, number: int) -> int:
    """Returns in how many rows a flat column has a value, where the footer says it, or else the number of rows."""
    nulls = [group.chunks[number].nulls for group in footer.groups]
    return max(footer.num_rows - sum(count for count in nulls if count is not None), 0)


def check_times(footer: Footer, number: int, kind: Any, name: str, path: Path) -> None:
    """Refuses a file in which a column's times are none: one such is a sign of damage.

    Args:
      footer: of the file.
      number: of the column.
      kind: its type, pyarrow's.
      name: of the column.
      path: for errors.

    Raises:
      InputError: the least or greatest value is outside of the years 1 to 9999, a duration is longer than a thousand
        million days, or the time zone is unknown.
    """
    from pyarrow import types

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
    for group in footer.groups:
        for value in (group.chunks[number].least, group.chunks[number].most):
            if value is not None and not least <= value / unit <= most:
                raise _wrong(path, name, f"holds the {kind} {value}, which is no time")


def _wrong(path: Path, name: str, problem: str) -> InputError:
    return InputError(
        f"{path} may be damaged: its column {name!r}, which is not needed, {problem}; write the file without it"
    )

"""Reads the metrics of a run back from its metrics.jsonl."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aligner_jax.errors import InputError
from aligner_jax.files.content import MEBIBYTE, read_text
from aligner_jax.files.fields import MAX_INTEGER
from aligner_jax.files.json_text import parse_object

FILE = "metrics.jsonl"
_MOST_BYTES = 512 * MEBIBYTE
_MOST_VALUES = 10_000


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Returns the lines of a metrics.jsonl, in their order, as dicts. Values that were not finite are None.

    A last line without a line end is left out: a killed process, or one that still runs, leaves it incomplete.

    Raises:
      InputError: the file cannot be read, or a line holds no metrics; names the line.
    """
    return list(metric_lines(path))


def metric_lines(path: str | Path) -> Iterator[dict[str, Any]]:
    """Yields what `read_metrics` returns. Raises InputError as it does, for a line once it is its turn."""
    lines = read_text(path, most=_MOST_BYTES).split("\n")[:-1]
    yield from (parse_line(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip())


def parse_line(line: str, where: str) -> dict[str, Any]:
    """Returns a line of metrics as `read_metrics` does. Raises InputError, which begins with `where`."""
    values = parse_object(line, where, most_values=_MOST_VALUES)
    step = values.get("step")
    if type(step) is not int or not 0 <= step <= MAX_INTEGER:
        raise InputError(f"{where} is not a line of metrics: it has no step")
    for name, value in values.items():
        if value is not None and type(value) not in (int, float):
            raise InputError(f"{where}: {name} should be a number or null")
        if value is not None and not _is_finite(value):
            values[name] = None
    return values


def _is_finite(value: Any) -> bool:
    # An integer of JSON may be larger than any float.
    return abs(value) <= sys.float_info.max

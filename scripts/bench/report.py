"""Medians, ratios and plain tables; part of scripts.bench.train, generate and gpu."""

import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

MAX_FOR_OTHERS = 0.05
"""Largest share of the cores that other processes may use in a turn that counts."""


class Spread(NamedTuple):
    """Median and range of some measurements."""

    median: float
    least: float
    most: float

    def __str__(self) -> str:
        return f"{self.median:,.0f} ({self.least:,.0f}..{self.most:,.0f})"


def quiet(turns: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Returns the turns during which other processes took little."""
    return [turn for turn in turns if turn["others"] <= MAX_FOR_OTHERS]


def quiet_text(turns: Sequence[Mapping[str, Any]]) -> str:
    """Formats the number of quiet turns, and that of all."""
    return f"{len(quiet(turns))} of {len(turns)}"


def warn(all_turns: Iterable[Sequence[Mapping[str, Any]]]) -> None:
    """Warns of arms without a quiet turn, whose figures are of no use."""
    if not all(map(quiet, all_turns)):
        print(f"Not a result: other processes took over {MAX_FOR_OTHERS:.0%} of the cores in all turns of some arm.")


def rates(turns: Sequence[Mapping[str, Any]]) -> Spread:
    """Returns the tokens a second of the quiet turns, or of all turns if none was quiet."""
    values = [turn["tokens"] / turn["seconds"] for turn in quiet(turns) or turns]
    return Spread(statistics.median(values), min(values), max(values))


def ratio(ours: float, peers: Sequence[float], best: Callable[[Sequence[float]], float]) -> float | None:
    """Returns ours over the peer's best arm, None without a peer. `best` is `max` for speeds, `min` for costs."""
    return ours / best(peers) if peers else None


def ratio_text(value: float | None) -> str:
    """Formats a ratio; an empty text for None."""
    return "" if value is None else f"{value:.2f}×"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Formats columns side by side, the first left-aligned and the others right-aligned."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]

    def line(row: Sequence[str]) -> str:
        padded = [text.rjust(width) for text, width in zip(row, widths, strict=True)]
        return "   ".join([row[0].ljust(widths[0]), *padded[1:]]).rstrip()

    return "\n".join([line(header), "─" * (sum(widths) + 3 * (len(widths) - 1)), *map(line, rows)])


def megabytes(value: float) -> str:
    """Formats bytes as megabytes (1e6 bytes)."""
    return f"{value / 1e6:,.0f}"


def write_json(path: Path | None, result: Mapping[str, Any]) -> None:
    """Writes a result to a file, if there is one; makes its folder."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")

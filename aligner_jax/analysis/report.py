"""Parts of an analysis: sections with pictures and tables, independent of the output format."""

import dataclasses
import math
from collections.abc import Sequence

type Cell = str | int | float | None


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows under column headings.

    Attributes:
      name: name of the CSV file, and key in the JSON file.
      title: title, in words.
      brief: True if the table is short enough for the terminal; others are folded on the page.
    """

    name: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    brief: bool = True


@dataclasses.dataclass(frozen=True)
class Picture:
    """A rendered figure; `name` is the name of its files."""

    name: str
    caption: str
    png: bytes
    svg: bytes


@dataclasses.dataclass(frozen=True)
class Section:
    """A section on one question.

    Attributes:
      text: explanation of the measurement and of its reading.
      sketch: lines that replace the pictures in the terminal.
    """

    title: str
    text: str
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    sketch: Sequence[str] = ()


def shown(cell: Cell) -> str:
    """Returns a cell as text: four significant digits; a dash for None, NaN and infinity."""
    if cell is None or (isinstance(cell, float) and not math.isfinite(cell)):
        return "–"
    if isinstance(cell, float):
        return f"{cell:.4g}"
    return f"{cell:,}" if isinstance(cell, int) else cell

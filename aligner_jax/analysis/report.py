"""What an analysis consists of: sections with pictures and tables, whatever they are then written as."""

import dataclasses
import math
from collections.abc import Sequence

type Cell = str | int | float | None


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows under column headings.

    Attributes:
      name: of its CSV file and its place in the JSON.
      title: in words.
      brief: short enough for the terminal, and not folded away on the page.
    """

    name: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    brief: bool = True


@dataclasses.dataclass(frozen=True)
class Picture:
    """A rendered figure; `name` is that of its files."""

    name: str
    caption: str
    png: bytes
    svg: bytes


@dataclasses.dataclass(frozen=True)
class Section:
    """One question and its answer.

    Attributes:
      text: what was measured and how to read it.
      sketch: lines for the terminal, which has no pictures.
    """

    title: str
    text: str
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    sketch: Sequence[str] = ()


def shown(cell: Cell) -> str:
    """A cell as a person reads it: four significant digits, a dash where there is nothing."""
    if cell is None or (isinstance(cell, float) and not math.isfinite(cell)):
        return "–"
    if isinstance(cell, float):
        return f"{cell:.4g}"
    return f"{cell:,}" if isinstance(cell, int) else cell

"""Tables for terminals of any width, in which no number and no name is ever cut.

A table that is too wide folds its text at spaces, then after slashes. If it is still too wide, its columns become
several tables, or its rows blocks of lines "name: value".
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table as Drawn
from rich.text import Text

from aligner_jax.errors import printable
from aligner_jax.runtime.folding import fold, least_width, width_of

type Justify = Literal["left", "right"]
_DEPTHS = (0, 1)
_PROSE, _LEAST_PROSE = 40, 20
"""Columns from which text counts as prose, and the columns that it gets at least: narrower columns are hard to read."""
_LEAST_RECORD = 24
"""Columns that a record of a table by column gets at least, unless it needs fewer."""


@dataclasses.dataclass
class _Column:
    heading: str
    justify: Justify
    cells: list[str] = dataclasses.field(default_factory=list)

    @property
    def natural(self) -> int:
        return max(map(width_of, [self.heading, *self.cells]))

    def least(self, depth: int) -> int:
        words = max(1, *(least_width(text, depth) for text in [self.heading, *self.cells]))
        return max(words, _LEAST_PROSE) if self.natural > _PROSE else words


class Table:
    """A table that rich's consoles print. Headings and cells are plain text: square brackets are no markup.

    Attributes:
      columns: the columns, with their cells.
    """

    def __init__(self, title: str = "", *, by_column: bool = False, show_lines: bool = False) -> None:
        """Makes an empty table.

        Args:
          title: text above the table.
          by_column: True if the first column names figures and every other column is a record: such a table is split
            into several of fewer columns.
          show_lines: draws a line between rows.
        """
        self._title, self._by_column, self._show_lines = _clean(title), by_column, show_lines
        self.columns: list[_Column] = []
        self._ends: set[int] = set()

    def add_column(self, heading: str, *, justify: Justify = "left") -> None:
        """Adds a column; numbers are justified to the right."""
        self.columns.append(_Column(_clean(heading), justify))

    def add_row(self, *cells: str, end_section: bool = False) -> None:
        """Adds a row with one cell per column; `end_section` draws a line below it."""
        for column, cell in zip(self.columns, cells, strict=True):
            column.cells.append(_clean(cell))
        if end_section:
            self._ends.add(self.row_count - 1)

    @property
    def row_count(self) -> int:
        """Number of rows."""
        return len(self.columns[0].cells) if self.columns else 0

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        if self._title:
            yield from (Text(line, style="table.title", no_wrap=True) for line in fold(self._title, width))
        for part in self._parts(console, options):
            widths = self._widths(part, width - self._overhead(console, options, part))
            if widths is None:
                yield from self._blocks(part, width)
            else:
                yield self._drawn(part, widths)

    def _parts(self, console: Console, options: ConsoleOptions) -> list[list[_Column]]:
        """Returns the columns of each table into which this one is split; a single one unless it is `by_column`."""
        if not self._by_column or len(self.columns) < 3:
            return [self.columns]
        names, *records = self.columns
        parts = [[names]]
        for record in records:
            wider = [*parts[-1], record]
            room = options.max_width - self._overhead(console, options, wider)
            if len(wider) > 2 and self._widths(wider, room, _LEAST_RECORD) is None:
                parts.append([names, record])
            else:
                parts[-1] = wider
        return parts

    def _widths(self, columns: Sequence[_Column], room: int, of_record: int = 0) -> list[int] | None:
        """Returns the columns' widths, whose sum is at most `room`; None if that would break a piece of text.

        Args:
          of_record: width of all but the first column at least, unless their text is narrower.
        """
        natural = [column.natural for column in columns]
        for depth in _DEPTHS:
            least = [column.least(depth) for column in columns]
            least[1:] = [max(a, min(b, of_record)) for a, b in zip(least[1:], natural[1:], strict=True)]
            if sum(least) > room:
                continue
            # The widest columns shrink first, to one common width.
            low, high = 0, max(natural, default=0)
            while low < high:
                most = (low + high + 1) // 2
                fits = sum(max(a, min(b, most)) for a, b in zip(least, natural, strict=True)) <= room
                low, high = (most, high) if fits else (low, most - 1)
            return [max(a, min(b, low)) for a, b in zip(least, natural, strict=True)]
        return None

    def _overhead(self, console: Console, options: ConsoleOptions, columns: Sequence[_Column]) -> int:
        drawn = self._empty()
        for _ in columns:
            drawn.add_column("", width=1)
        return Measurement.get(console, options.update_width(10_000), drawn).maximum - len(columns)

    def _empty(self) -> Drawn:
        if self._by_column:
            return Drawn(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
        return Drawn(show_lines=self._show_lines)

    def _drawn(self, columns: Sequence[_Column], widths: Sequence[int]) -> Drawn:
        drawn = self._empty()
        folded: list[list[Text]] = []
        for column, width in zip(columns, widths, strict=True):
            heading, *cells = (Text("\n".join(fold(text, width))) for text in [column.heading, *column.cells])
            drawn.add_column(heading, justify=column.justify, width=width)
            folded.append(cells)
        for i, row in enumerate(zip(*folded, strict=True)):
            drawn.add_row(*row, end_section=i in self._ends)
        return drawn

    def _blocks(self, columns: Sequence[_Column], width: int) -> RenderResult:
        """Yields one block of lines per row. A record of a `by_column` table is one block itself."""
        if self._by_column:
            names, *records = columns
            blocks = [[("", record.heading), *zip(names.cells, record.cells, strict=True)] for record in records]
        else:
            blocks = [[(c.heading, c.cells[i]) for c in columns] for i in range(self.row_count)]
        fields = [field for block in blocks for field in block if field[0]]
        indent = max((width_of(name) + 2 for name, _ in fields), default=0)
        values = max((least_width(value, 1) for _, value in fields), default=0)
        if indent + max(values, width // 3) > width:
            indent = 0
        for i, block in enumerate(blocks):
            if i:
                yield Text("")
            yield from (Text(line, no_wrap=True, overflow="ignore") for line in _lines(block, width, indent))


def _lines(block: Sequence[tuple[str, str]], width: int, indent: int) -> list[str]:
    """Returns the lines of a record, its values beside the names in column `indent`; 0 aligns none."""
    lines: list[str] = []
    for name, value in block:
        if not name:
            lines += fold(value, width) if value else []
        elif indent:
            first, *more = fold(value, width - indent)
            lines += [f"{name + ':':<{indent}}{first}".rstrip(), *(" " * indent + line for line in more)]
        elif width_of(f"{name}: {value}") <= width:
            lines.append(f"{name}: {value}".rstrip())
        else:
            lines += [*fold(f"{name}:", width), *(f"  {line}" for line in fold(value, width - 2))]
    return lines


def _clean(text: str) -> str:
    return printable(text).expandtabs()

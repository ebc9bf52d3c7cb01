"""Writes an analysis to a folder: the page, figures as PNG and SVG, tables as CSV, and all numbers as JSON."""

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from aligner_jax.analysis.page import render
from aligner_jax.analysis.report import Cell, Section, Table, shown
from aligner_jax.errors import InputError
from aligner_jax.runtime.files import check_new, reason, write_atomically
from aligner_jax.runtime.tables import Table as Shown

PAGE, NUMBERS = "index.html", "analysis.json"


def check_folder(folder: Path, *, overwrite: bool = False) -> None:
    """Makes the folder, to be called before the analysis.

    Raises:
      InputError: the folder cannot be made, or has an earlier analysis and `overwrite` is False.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        why = reason(error) if isinstance(error, OSError) else error
        raise InputError(f"{folder} cannot be made a folder: {why}") from error
    for name in (PAGE, NUMBERS):
        check_new(folder / name, overwrite=overwrite)


def write(folder: Path, title: str, sections: Sequence[Section]) -> list[Path]:
    """Writes all files atomically, the page last; existing files are replaced.

    Returns:
      Paths of the files, in the order in which they were written.

    Raises:
      InputError: a file cannot be written; the message names it and the system's reason.
    """
    contents: dict[str, bytes | str] = {}
    for section in sections:
        for table in section.tables:
            contents[f"{table.name}.csv"] = _csv(table)
        for picture in section.pictures:
            contents[f"figures/{picture.name}.png"] = picture.png
            contents[f"figures/{picture.name}.svg"] = picture.svg
    contents[NUMBERS] = json.dumps(numbers(sections), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    contents[PAGE] = render(title, sections)
    for name, content in contents.items():
        write_atomically(folder / name, content)
    return [folder / name for name in contents]


def numbers(sections: Sequence[Section]) -> dict[str, list[dict[str, Cell]]]:
    """Returns the rows of all tables by the table's name, as objects by column; NaN and infinity become None."""
    return {
        table.name: [
            {column: _finite(cell) for column, cell in zip(table.columns, row, strict=True)} for row in table.rows
        ]
        for section in sections
        for table in section.tables
    }


def show(sections: Sequence[Section], console: Console) -> None:
    """Prints the brief tables and the sketches, for readers without a browser."""
    for section in sections:
        tables = [table for table in section.tables if table.brief]
        if not tables and not section.sketch:
            continue
        console.out(f"\n{section.title}", style="bold")
        for table in tables:
            drawn = Shown(table.title)
            for i, column in enumerate(table.columns):
                is_text = all(isinstance(row[i], str | None) for row in table.rows)
                drawn.add_column(column, justify="left" if is_text else "right")
            for row in table.rows:
                drawn.add_row(*map(shown, row))
            console.print(drawn)
        for line in section.sketch:
            console.out(line)


def _csv(table: Table) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows([["" if (x := _finite(cell)) is None else x for cell in row] for row in table.rows])
    return text.getvalue()


def _finite(cell: Cell) -> Cell:
    return None if isinstance(cell, float) and not math.isfinite(cell) else cell

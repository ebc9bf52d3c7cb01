"""Layouts of a table: beside, folded, several tables, blocks."""

import io

import pytest

from aligner_jax.runtime.output import PlainConsole
from aligner_jax.runtime.tables import Table


def shown(table: Table, width: int) -> list[str]:
    screen = io.StringIO()
    PlainConsole(file=screen, width=width).print(table)
    return [line.rstrip() for line in screen.getvalue().splitlines()]


def runs() -> Table:
    table = Table("Runs [bold]of today")
    for heading in ("run", "loss (nats a token)", "file"):
        table.add_column(heading, justify="right" if "loss" in heading else "left")
    table.add_row("first", "0.693147", "/data/quickstart/adapter.safetensors")
    table.add_row("second", "", "/data/[/a]/b.safetensors", end_section=True)
    return table


def test_a_table_that_fits_is_one_line_a_row():
    lines = shown(runs(), 80)
    assert lines[0] == "Runs [bold]of today"
    assert lines[4] == "│ first  │            0.693147 │ /data/quickstart/adapter.safetensors │"


def test_a_narrower_one_folds_and_a_narrow_one_is_blocks():
    folded = shown(runs(), 50)
    assert "│ first  │        0.693147 │ /data/quickstart/   │" in folded
    assert "│        │                 │ adapter.safetensors │" in folded
    assert shown(runs(), 36) == [
        "Runs [bold]of today",
        "run: first",
        "loss (nats a token): 0.693147",
        "file:",
        "  /data/quickstart/",
        "  adapter.safetensors",
        "",
        "run: second",
        "loss (nats a token):",
        "file: /data/[/a]/b.safetensors",
    ]
    assert shown(runs(), 42)[1:5] == [
        "run:                 first",
        "loss (nats a token): 0.693147",
        "file:                /data/quickstart/",
        "                     adapter.safetensors",
    ]


def plans() -> Table:
    table = Table(by_column=True)
    for heading in ("", "v5e:2x4, 8 devices", "v6e:4x4, 16 devices"):
        table.add_column(heading, justify="right" if heading else "left")
    table.add_row("weights", "12.55 GiB (bfloat16)", "6.28 GiB (bfloat16)")
    table.add_row("  gathered from other devices", "1.00 GiB", "–")
    return table


@pytest.mark.parametrize(("width", "tables"), [(100, 1), (60, 1), (50, 2), (40, 2)])
def test_records_that_do_not_fit_beside_each_other_are_several_tables(width: int, tables: int):
    lines = shown(plans(), width)
    assert sum(" weights" in line for line in lines) == tables
    assert sum("─" in line for line in lines) == tables


def test_records_are_blocks_in_the_narrowest_terminal():
    assert shown(plans(), 20)[:6] == [
        "v5e:2x4, 8 devices",
        "weights:",
        "  12.55 GiB",
        "  (bfloat16)",
        "  gathered from",
        "other devices:",
    ]


def test_control_characters_are_escaped_before_the_width_is_measured():
    table = Table("\x1b[2J")
    table.add_column("name")
    table.add_row("a\x07b\tc")
    lines = shown(table, 40)
    assert lines[0] == r"\x1b[2J"
    assert lines[-2] == r"│ a\x07b  c │"


def test_a_table_without_rows_or_columns_prints_its_headings():
    table = Table()
    table.add_column("name")
    assert shown(table, 20)[1] == "┃ name ┃"
    assert shown(Table("only a title"), 20)[0] == "only a title"

"""Files of an analysis: their contents and formats, and the look of cells, names and lines."""

import base64
import csv
import io
import json
import math
import re
from pathlib import Path

import pytest
from rich.console import Console

from aligner_jax.analysis import style
from aligner_jax.analysis.page import render
from aligner_jax.analysis.report import Picture, Section, Table, shown
from aligner_jax.analysis.write import check_folder, show, write
from aligner_jax.errors import InputError

ROWS = [("[b]<i>", 1234, 0.123456), ("x", None, math.nan)]
SECTION = Section(
    "First & last",
    "How to read it.",
    [Picture("drawn", "A figure.", b"\x89PNG", b"<svg/>")],
    [
        Table("short", "Short", ("name", "count", "size"), ROWS),
        Table("long", "Long", ("name", "count", "size"), ROWS, brief=False),
    ],
    ["▁▂ sketch"],
)


@pytest.mark.parametrize(
    ("cell", "text"),
    [(0.123456, "0.1235"), (1234567.0, "1.235e+06"), (12345, "12,345"), ("a", "a"), (None, "–"), (math.inf, "–")],
)
def test_cells_are_read_to_four_digits(cell, text):
    assert shown(cell) == text


def test_every_number_is_in_its_table_and_in_the_json(tmp_path: Path):
    written = write(tmp_path, "Title", [SECTION])
    assert [str(path.relative_to(tmp_path)) for path in written] == [
        "short.csv", "long.csv", "figures/drawn.png", "figures/drawn.svg", "analysis.json", "index.html",
    ]  # fmt: skip
    assert all(path.is_file() for path in written)
    rows = list(csv.reader(io.StringIO((tmp_path / "long.csv").read_text())))
    assert rows == [["name", "count", "size"], ["[b]<i>", "1234", "0.123456"], ["x", "", ""]]
    numbers = json.loads((tmp_path / "analysis.json").read_text())
    expected = [dict(zip(("name", "count", "size"), row, strict=True)) for row in (ROWS[0], ("x", None, None))]
    assert numbers == {"short": expected, "long": expected}
    assert (tmp_path / "figures" / "drawn.svg").read_bytes() == b"<svg/>"
    assert (tmp_path / "figures" / "drawn.png").read_bytes() == b"\x89PNG"
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match=r"taken/short\.csv cannot be written"):
        write(tmp_path / "taken", "Title", [SECTION])


def test_the_page_folds_long_tables_away_and_takes_nothing_for_markup():
    page = render("A <b>", [SECTION])
    assert "<title>A &lt;b&gt;</title>" in page
    assert page.count("<td>[b]&lt;i&gt;</td>") == 2
    assert page.count('<td class="number">1,234</td>') == 2
    (folded,) = re.findall(r"<details>(.*?)</details>", page, re.DOTALL)
    assert folded.startswith("<summary>Long (2 rows)</summary>")
    assert folded.count("<table>") == 1
    assert page.count("<table>") == 2
    assert f'src="data:image/svg+xml;base64,{base64.b64encode(b"<svg/>").decode()}"' in page
    assert '<a href="#s0">First &amp; last</a>' in page
    assert '<h2 id="s0">First &amp; last</h2>' in page


def test_the_terminal_shows_short_tables_and_sketches():
    out = io.StringIO()
    show([SECTION], Console(file=out, width=80))
    text = out.getvalue()
    assert "First & last" in text
    assert "[b]<i>" in text
    assert "1,234" in text
    assert "▁▂ sketch" in text
    assert "Short" in text
    assert "Long" not in text


def test_lines_and_points_are_told_apart():
    lines = [style.line_of(number) for number in range(24)]
    assert len({(line["color"], line["linestyle"]) for line in lines}) == 24
    points = [style.marker_of(number) for number in range(36)]
    assert len({(point["color"], point["marker"]) for point in points}) == 36
    # An adapter has one colour in all figures.
    assert [line["color"] for line in lines] == [point["color"] for point in points[:24]]


@pytest.mark.parametrize(
    ("text", "drawn"),
    [("a$b$", r"a\$b\$"), ("_a$", r" _a\$"), ("é␣", "é␣"), ("”αя", "”αя"), ("\u200b", r"\u200b"), ("字", r"\u5b57")],
)
def test_names_are_drawn_and_not_set_as_formulas(text, drawn):
    assert style.plain(text) == drawn


def test_an_earlier_analysis_is_kept_unless_it_may_be_replaced(tmp_path: Path):
    check_folder(tmp_path)
    (tmp_path / "index.html").write_text("mine")
    with pytest.raises(InputError, match=r"index\.html exists already: .*--overwrite"):
        check_folder(tmp_path)
    check_folder(tmp_path, overwrite=True)

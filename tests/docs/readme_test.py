"""README.md is short, and its numbers are those of the pages and commands that it names."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
NUMBER = re.compile(r"\d[\d,.:x]*\d|\d")


def rows() -> list[dict[str, str]]:
    """Returns the rows of all tables that have a column "command", by the names of their columns."""
    result = []
    for table in re.findall(r"(?:^\|.*\n)+", README, re.M):
        lines = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in table.splitlines()]
        if "command" in lines[0]:
            result += [dict(zip(lines[0], cells, strict=True)) for cells in lines[2:]]
    return result


def numbers(text: str) -> list[str]:
    return NUMBER.findall(text)


def test_it_is_short():
    lines = README.splitlines()
    assert len(lines) <= 150
    # A row of a table is one line, and so is an equation.
    assert max(len(line) for line in lines if not line.startswith(("|", "$$"))) <= 132


def test_both_kinds_of_results_are_there():
    pages = [row["page"] for row in rows()]
    assert sum("reproduction" in page for page in pages) >= 6
    assert sum("tpu" in page for page in pages) >= 4


@pytest.mark.parametrize("row", rows(), ids=lambda row: " ".join(list(row.values())[:2]))
def test_a_row_has_the_cells_of_one_line_of_its_page(row: dict[str, str]):
    page = ROOT / re.search(r"\]\((docs/\w+\.md)\)", row["page"])[1]
    wanted = {cell for column, cell in row.items() if column not in ("page", "command")}
    assert len(wanted) >= 3
    lines = [{cell.strip() for cell in line.split("|")} for line in page.read_text().splitlines()]
    assert any(wanted <= cells for cells in lines), f"{page.name} has no line with {wanted}"


@pytest.mark.parametrize(
    ("sentence", "page"),
    [
        (r"828 parameters reach .*? learns \d+ %", "reproduction.md"),
        (r"training processes .*? a third", "performance.md"),
        (r"For LLaMA-7B with one token that is \*\*[\d,]+", "reproduction.md"),
    ],
)
def test_numbers_in_sentences_are_those_of_the_page(sentence: str, page: str):
    text = (ROOT / "docs" / page).read_text()
    found = numbers(re.search(sentence, README.replace("\n", " "))[0])
    assert found
    for number in found:
        assert re.search(rf"(?<![\d,.]){re.escape(number)}(?!\d)", text), f"{page} has no {number}"

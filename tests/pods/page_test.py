"""docs/pods.md: its commands are understood, and what they print is what the page says."""

import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from scripts.pods import flags, jobset, skypilot, xpk

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "pods.md").read_text()
RECIPES: dict[str, Callable[[Sequence[str]], str]] = {
    "jobset": jobset.main,
    "xpk": xpk.main,
    "skypilot": skypilot.main,
}


def commands() -> list[list[str]]:
    """Returns the words of the shell lines in the page's blocks."""
    blocks = re.findall(r"^    .*(?:\n    .*)*", PAGE, re.M)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line) for line in lines]


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_recipes_of_the_page_render(recipe: str):
    [words] = [words for words in commands() if words[:3] == ["python", "-m", f"scripts.pods.{recipe}"]]
    text = RECIPES[recipe]([word for word in words[3:] if not word.startswith(">")])
    assert "alpaca" in text
    assert "/mount/runs/alpaca" in text


def test_recipes_in_docstrings_render():
    for recipe, main in RECIPES.items():
        source = (ROOT / "scripts" / "pods" / f"{recipe}.py").read_text()
        docstring = source.split('"""')[1].replace("\\\n", " ")
        [line] = [line for line in docstring.splitlines() if line.startswith("python -m scripts.pods")]
        words = shlex.split(re.split(r" [|>]", line)[0])
        assert "aligner_jax.train" in main(words[3:])


def test_files_of_the_page_are_there():
    for path in re.findall(r"scripts/pods/\w+(?:\.\w+)?", PAGE):
        assert (ROOT / path).is_file(), path


def test_the_table_of_statuses_is_the_recipes():
    rows = [line.split("|")[1:-1] for line in PAGE.splitlines() if line.startswith("| ") and "begun again" in line]
    again = {int(number) for cells in rows for number in re.findall(r"\b\d{2,3}\b", cells[0])}
    assert again == {*flags.RESTART_ON, 137}
    [given_up] = [line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| 1, 2:")]
    assert {int(number) for number in re.findall(r"\b\d\b", given_up)} == set(flags.GIVE_UP_ON)

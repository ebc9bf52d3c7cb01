"""The reference that is written from the code has every field, flag, method and public name."""

import dataclasses
import inspect
from collections.abc import Iterator

import pytest

import aligner_jax as aj
from aligner_jax.evals.run import EVALUATIONS
from aligner_jax.peft import METHODS
from aligner_jax.runtime import config
from aligner_jax.tasks.objectives import OBJECTIVES
from aligner_jax.usage.commands import command_names, read_command, takes_flags
from scripts.site.reference.api_page import api_page
from scripts.site.reference.commands_page import commands_page
from scripts.site.reference.config_page import config_page
from scripts.site.reference.methods_page import methods_page
from scripts.site.reference.text import entries, paragraphs, prose, sections


@pytest.fixture(scope="module")
def page() -> str:
    return config_page()


def rows_of(page: str) -> Iterator[list[str]]:
    """Yields the cells of all rows of tables, without heads."""
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").replace("\\|", "¦").split(" | ")]
        if line.startswith("| `"):
            yield cells


def names_in(section: type) -> list[str]:
    return [field.name for field in dataclasses.fields(section) if not hasattr(section, "arrange")]


def test_every_field_of_training_is_there(page: str):
    shown = {row[0] for row in rows_of(page)}
    for section in dataclasses.fields(config.TrainConfig):
        if not dataclasses.is_dataclass(section.type):
            assert f"`{section.name}`" in shown
            continue
        for name in names_in(section.type):
            assert f"`{section.name}.{name}`" in shown
    # These three stand for all: a section's field, an option of a method, and what a section collects.
    assert {"`optim.lr`", "`adapter.num_tokens`", "`objective.beta`"} <= shown
    assert "`adapter.options`" not in shown


@pytest.mark.parametrize("table", [METHODS, OBJECTIVES, EVALUATIONS], ids=["methods", "objectives", "evaluations"])
def test_every_option_is_there(table: dict, page: str):
    for name, record in table.items():
        part = page.partition(f" `{name}`\n")[2].partition("\n#")[0]
        assert part, name
        for option in names_in(record.options):
            assert f".{option}`" in part or f".{option}." in part, f"{name}: {option}"


def test_every_field_has_type_default_and_meaning(page: str):
    rows = list(rows_of(page))
    assert len(rows) > 100
    for row in rows:
        name, kind, default, _, meaning = row
        assert all([kind, default, meaning]), f"{name}: describe it under Attributes in its dataclass"


def test_ranges_and_choices_are_those_of_the_fields(page: str):
    found = {row[0]: row for row in rows_of(page)}
    assert found["`optim.lr`"][1:4] == ["number", "`0.009`", "≥ 0"]
    assert found["`mesh.fsdp`"][1:4] == ["integer", "`-1`", "≥ -1, not 0"]
    assert found["`optim.clip`"][1:4] == ["number or None", "`None`", "> 0"]
    assert found["`data.overlong`"][3] == "'error', 'truncate', 'drop'"
    assert found["`base.path`"][2] == "required"


def test_every_flag_of_every_command_is_there():
    page = commands_page()
    assert {"train", "generate", "compile", "combine"} <= set(command_names())
    for name in command_names():
        part = page.partition(f"\n## `{name}`\n")[2].partition("\n## ")[0]
        assert read_command(name).names or not takes_flags(name), name
        for flag in read_command(name).names:
            assert f"| `--{flag}` |" in part, f"{name}: {flag}"
    assert {"config", "workdir"} <= set(read_command("train").names)
    assert "repeat this option" not in page


def test_every_public_name_is_there_with_its_arguments():
    page = api_page()
    for name in (name for name in aj.__all__ if not name.startswith("_")):
        part = page.partition(f"\n## `aj.{name}`\n")[2].partition("\n## ")[0]
        assert part.strip(), name
        if inspect.isfunction(getattr(aj, name)):
            for argument in inspect.signature(getattr(aj, name)).parameters:
                assert argument in part, f"{name}: {argument}"


def test_methods_have_the_published_numbers_of_parameters():
    page = methods_page()
    for method, count in {"aligner": "5,056", "llama_adapter": "1,229,760", "lora": "4,194,304"}.items():
        assert f"| `{method}` |  | {count} |" in page
    assert "| `aligner` | `num_tokens=10` | 41,920 | 52,720 |" in page
    assert all(f"\n## `{name}`\n" in page for name in METHODS)


DOCSTRING = """Returns a|b of <x>.

- one: `a|b`
  goes on.
- two.

Args:
  first: the first;
    it goes on.
  second, third: both.

Raises:
  InputError: always.
"""


def test_a_docstring_becomes_markdown():
    parts = sections(DOCSTRING)
    assert list(parts) == ["", "Args", "Raises"]
    assert entries(parts["Args"]) == {"first": "the first; it goes on.", "second": "both.", "third": "both."}
    assert paragraphs(parts[""]) == "Returns a\\|b of \\<x>.\n\n- one: `a|b` goes on.\n- two.\n"
    assert prose("gates_* and `a*b`") == r"gates_\* and `a*b`"

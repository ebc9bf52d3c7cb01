"""docs/training.md has every field of a training config, every method and objective, and every config file."""

import dataclasses
from pathlib import Path

import pytest

from aligner_jax.peft.methods import METHODS
from aligner_jax.runtime.config import TrainConfig
from aligner_jax.tasks.objectives import OBJECTIVES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "training.md").read_text()


@pytest.mark.parametrize("section", dataclasses.fields(TrainConfig), ids=lambda section: section.name)
def test_every_field_is_there(section: dataclasses.Field):
    assert f"`{section.name}" in PAGE
    kind = section.type
    fields = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()
    for field in fields:
        if field.name != "options":
            assert f"`{field.name}`" in PAGE, f"config.{section.name}.{field.name}"


@pytest.mark.parametrize("name", METHODS)
def test_every_method_and_its_options_are_there(name: str):
    [row] = [line for line in PAGE.splitlines() if line.startswith(f"| `{name}` | ")]
    for option in dataclasses.fields(METHODS[name].options):
        assert name == "sum" or f"`{option.name}`" in row, option.name


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_and_its_options_are_there(name: str):
    [row] = [line for line in PAGE.splitlines() if line.startswith("| `objective` | ")]
    for text in (name, *(option.name for option in dataclasses.fields(OBJECTIVES[name].options))):
        assert f"`{text}`" in row


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda path: path.name)
def test_every_config_is_there(path: Path):
    assert f"`{path.name}`" in PAGE

"""Fields of configs as the source tells them, against the dataclasses themselves."""

import dataclasses
import re
import typing

import pytest

from aligner_jax.evals.interface import EvaluateConfig
from aligner_jax.evals.run import EVALUATIONS
from aligner_jax.peft import METHODS
from aligner_jax.runtime.config import TrainConfig
from aligner_jax.tasks.objectives import OBJECTIVES
from aligner_jax.usage.config_fields import Field, config_paragraphs, fields_of, located, options_of


def _is_as_in(read: list[Field], kind: type) -> None:
    fields = dataclasses.fields(kind)
    assert [field.name for field in read] == [field.name for field in fields]
    hints = typing.get_type_hints(kind)
    for field, told in zip(fields, read, strict=True):
        if field.default is not dataclasses.MISSING:
            assert eval(str(told.default), {}, vars(__import__(kind.__module__, fromlist=["x"]))) == field.default
        elif field.default_factory is dataclasses.MISSING:
            assert told.default is None, told
        if dataclasses.is_dataclass(hints[field.name]):
            assert told.section is not None, told
            _is_as_in(fields_of(told.section), typing.cast(type, hints[field.name]))


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        ("aligner_jax.runtime.config:TrainConfig", TrainConfig),
        ("aligner_jax.evals.interface:EvaluateConfig", EvaluateConfig),
    ],
)
def test_fields_and_defaults_are_those_of_the_dataclasses(place: str, kind: type):
    _is_as_in(fields_of(located(place)), kind)


@pytest.mark.parametrize(
    ("section", "table"),
    [("AdapterConfig", METHODS), ("ObjectiveConfig", OBJECTIVES), ("EvaluationConfig", EVALUATIONS)],
)
def test_options_are_those_of_every_entry(section: str, table: dict):
    read = dict(options_of(section))
    assert list(read) == list(table)
    for name, fields in read.items():
        _is_as_in(fields, table[name].options)


def test_the_help_of_a_command_without_a_config_has_no_fields():
    assert config_paragraphs("generate") == []


def test_every_section_is_listed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "120")
    text = "\n".join(config_paragraphs("train"))
    assert re.search(r"^    method=full +no options$", text, re.MULTILINE)
    assert "\n    method=lora             rank=8  alpha=16  targets=('q', 'v')" in text
    assert "\n  checkpoint                every=200  keep=2\n" in text
    assert "  seed=0" in text

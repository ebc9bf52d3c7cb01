"""Evaluation: the record of one, with the configuration, the `Run` and the `Outcome` that all have in common.

Another evaluation is a file here with a dataclass of its options and a function, and a line in `run.EVALUATIONS`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from aligner_jax.data.prompt_format import PromptFormat
from aligner_jax.errors import InputError
from aligner_jax.evals.kept import Kept
from aligner_jax.evals.subject import Subject
from aligner_jax.runtime.config import SEEDS, BaseConfig, MeshConfig
from aligner_jax.runtime.fields import number, parse_section


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """The name of an evaluation, and all other keys of its config section as its options, which it checks itself."""

    name: str
    options: dict[str, object] = dataclasses.field(default_factory=dict, hash=False)

    @staticmethod
    def arrange(values: dict[str, object]) -> dict[str, object]:
        """Moves every key but the name into the options."""
        named = {"name": values.pop("name")} if "name" in values else {}
        return {"options": values, **named}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """One evaluation.

    Attributes:
      base: the frozen model; None for evaluations that run none.
      batch_size: rows that are computed at once, over all devices.
      limit: of every document set so many are taken, from its beginning; None: all.
      seed: of sampling.
    """

    evaluation: EvaluationConfig
    base: BaseConfig | None = None
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    batch_size: int = number(8, least=1)
    limit: int | None = number(None, least=1)
    seed: int = number(0, least=0, below=SEEDS)


def parse_evaluate_config(config: ConfigDict | Mapping[str, Any]) -> EvaluateConfig:
    """Returns the `EvaluateConfig` of a ConfigDict or dict; fields that are left out take their defaults.

    Raises:
      InputError: an unknown or missing field, or a value of the wrong type or out of range; names the field in full.
    """
    return parse_section(EvaluateConfig, config.to_dict() if isinstance(config, ConfigDict) else config, "config")


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything that an evaluation works with.

    Attributes:
      subject: the model that is evaluated; None where the evaluation needs none.
      folder: its own, where results and what is kept for resuming go; it exists.
      made_from: what everything in the folder depends on, by names that can stand in a sentence.
    """

    config: EvaluateConfig
    subject: Subject | None
    folder: Path
    console: Console
    made_from: dict[str, Any]

    @property
    def model(self) -> Subject:
        """The subject of an evaluation that has one. Raises ValueError where it has none."""
        if self.subject is None:
            raise ValueError(f"the evaluation {self.config.evaluation.name!r} has no model")
        return self.subject

    def prompt_format(self, template: str, system: str | None) -> PromptFormat:
        """Returns the format of the evaluation's prompts, and prints it; see `PromptFormat.resolve`."""
        found = self.model.prompt_format_of(template, system)
        with_system = "" if found.system is None else f", with the system prompt {found.system!r}"
        self.console.out(f"prompts: template {found.template}{with_system}")
        return found

    def kept(self, name: str, *, without: tuple[str, ...] = ()) -> Kept:
        """Returns what earlier runs of this evaluation finished, from `name`.jsonl in the folder.

        Args:
          without: options that decide how what is kept is read, and not what it is.

        Raises:
          InputError: the file was made from something else, or is damaged.
        """
        left_out = {f"config.evaluation.{option}" for option in without}
        made_from = {name: value for name, value in self.made_from.items() if name not in left_out}
        return Kept(self.folder / f"{name}.jsonl", made_from)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Results of an evaluation: values for JSON, and the table that is shown."""

    scores: dict[str, Any]
    table: Table


class Evaluation(NamedTuple):
    """One evaluation.

    Attributes:
      options: a dataclass of what its config may hold besides the name.
      run: from a `Run` and an instance of the options to an `Outcome`.
      has_model: True if a base, perhaps with an adapter, is run.
    """

    options: type
    run: Callable[[Run, Any], Outcome]
    has_model: bool = True


def parse_options(evaluation: Evaluation, config: EvaluateConfig) -> Any:
    """Returns the evaluation's options.

    Raises:
      InputError: an unknown or missing option, or a value of the wrong type or out of range; or there is no base.
    """
    if evaluation.has_model and config.base is None:
        raise InputError("config.base is not set; set config.base.path in the config file or with --config.base.path=…")
    return parse_section(evaluation.options, config.evaluation.options, "config.evaluation")

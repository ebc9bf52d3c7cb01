"""Interface of evaluations: `Evaluation`, and the config, `Run` and `Outcome` that all evaluations share.

A new evaluation is a file in this folder with a dataclass of options and a function, and a line in `run.EVALUATIONS`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict
from rich.console import Console

from aligner_jax.data.prompt_format import PromptFormat
from aligner_jax.errors import InputError
from aligner_jax.evals.result_store import ResultStore
from aligner_jax.evals.subject import Subject
from aligner_jax.runtime.config import SEEDS, BaseConfig, MeshConfig
from aligner_jax.runtime.fields import number, parse_section
from aligner_jax.runtime.tables import Table


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """The config section of an evaluation.

    Attributes:
      name: key of `run.EVALUATIONS`.
      options: all other keys of the section; `parse_options` checks them.
    """

    name: str
    options: dict[str, object] = dataclasses.field(default_factory=dict, hash=False)

    @staticmethod
    def arrange(values: dict[str, object]) -> dict[str, object]:
        """Moves all keys except the name into `options`."""
        named = {"name": values.pop("name")} if "name" in values else {}
        return {"options": values, **named}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Config of one evaluation.

    Attributes:
      evaluation: name and options of the evaluation.
      base: the frozen model; None for evaluations that run no model, or only a judge.
      mesh: devices that the model is sharded over.
      batch_size: rows per batch, over all devices.
      limit: number of documents to take from the beginning of every document set; None means all.
      seed: sampling seed.
    """

    evaluation: EvaluationConfig
    base: BaseConfig | None = None
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    batch_size: int = number(8, least=1)
    limit: int | None = number(None, least=1)
    seed: int = number(0, least=0, below=SEEDS)


def parse_evaluate_config(config: ConfigDict | Mapping[str, Any]) -> EvaluateConfig:
    """Returns the `EvaluateConfig` of a ConfigDict or dict. Missing fields take their defaults.

    Raises:
      InputError: it is a config of training; a field is unknown or missing; or a value has the wrong type or is out
        of range. Names the field in full.
    """
    values = config.to_dict() if isinstance(config, ConfigDict) else config
    if "evaluation" not in values and {"data", "steps", "optim"} & {*values}:
        raise InputError(
            "the config is one of training: give the config of an evaluation, such as configs/eval/quick.py, and what "
            "was trained as the adapter"
        )
    return parse_section(EvaluateConfig, values, "config")


@dataclasses.dataclass(frozen=True)
class Run:
    """Inputs of an evaluation besides its options.

    Attributes:
      config: config of the evaluation.
      subject: the evaluated model; None if the evaluation runs no model.
      folder: existing folder for the results and for finished documents, from which a run resumes.
      console: console for progress lines.
      made_from: everything that the files in the folder depend on, by names that error messages quote.
    """

    config: EvaluateConfig
    subject: Subject | None
    folder: Path
    console: Console
    made_from: dict[str, Any]

    @property
    def model(self) -> Subject:
        """Returns the subject. Raises ValueError if the evaluation runs no model."""
        if self.subject is None:
            raise ValueError(f"the evaluation {self.config.evaluation.name!r} has no model")
        return self.subject

    def prompt_format(self, template: str, system: str | None) -> PromptFormat:
        """Returns the format of the prompts, and prints it; see `PromptFormat.resolve`."""
        found = self.model.prompt_format_of(template, system)
        with_system = "" if found.system is None else f", with the system prompt {found.system!r}"
        self.console.out(f"prompts: template {found.template}{with_system}")
        return found

    def result_store(self, name: str, *, without: tuple[str, ...] = ()) -> ResultStore:
        """Returns the documents that earlier runs of this evaluation finished.

        Args:
          name: name of their file in the folder, without ".jsonl".
          without: options that the documents do not depend on: they only change how documents are scored.

        Raises:
          InputError: the file was made from another config or model, or is damaged.
        """
        left_out = {f"config.evaluation.{option}" for option in without}
        made_from = {name: value for name, value in self.made_from.items() if name not in left_out}
        return ResultStore(self.folder / f"{name}.jsonl", made_from)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Results of an evaluation.

    Attributes:
      scores: JSON values for results.json.
      table: table that is printed.
    """

    scores: dict[str, Any]
    table: Table


class Evaluation(NamedTuple):
    """An evaluation.

    Attributes:
      options: dataclass of the options in its config section.
      run: function from a `Run` and the options to an `Outcome`.
      has_model: True if the evaluation runs the config's base, with or without an adapter.
    """

    options: type
    run: Callable[[Run, Any], Outcome]
    has_model: bool = True


def parse_options(evaluation: Evaluation, config: EvaluateConfig) -> Any:
    """Returns the evaluation's options, as an instance of its dataclass.

    Raises:
      InputError: an option is unknown or missing, a value has the wrong type or is out of range, or the base is not
        set.
    """
    if evaluation.has_model and config.base is None:
        raise InputError("config.base is not set; set config.base.path in the config file or with --config.base.path=…")
    return parse_section(evaluation.options, config.evaluation.options, "config.evaluation")

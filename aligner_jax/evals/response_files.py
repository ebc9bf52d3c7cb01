"""Reads models' responses to the same questions, from files of this package's evaluations or of other programs."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

from aligner_jax.data.sources.records import read_records
from aligner_jax.data.sources.values import kind, text_field
from aligner_jax.errors import InputError
from aligner_jax.files.csv_records import csv_records
from aligner_jax.runtime.fields import did_you_mean


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResponsesConfig:
    """Config of the files of responses.

    Attributes:
      files: files in JSON, JSON lines, Parquet or, with the suffix .csv, CSV.
      model_field: field with the model's name. None means one model per file, named as the file without its suffix.
      prompt_field: field with the question's text, by which responses of several models are matched.
      response_field: field with the response's text.
    """

    files: tuple[str, ...] = ()
    model_field: str | None = "model"
    prompt_field: str = "prompt"
    response_field: str = "response"


@dataclasses.dataclass(frozen=True)
class Response:
    """One model's response to a question.

    Attributes:
      prompt: text of the question.
      text: text of the response.
      record: all fields of the record.
      where: position of the record, "file:line".
    """

    prompt: str
    text: str
    record: Mapping[str, object]
    where: str

    def number(self, field: str) -> float:
        """Returns the finite number in a field of the record; true and false are 1 and 0.

        Raises:
          InputError: the field is missing or not a finite number. Quotes no text.
        """
        value = self._present(field)
        if isinstance(value, str) and value.strip().lower() in ("true", "false"):
            value = value.strip().lower() == "true"
        try:
            # Python's `float` accepts underscores between digits, which are not valid in a file's numbers.
            given = isinstance(value, int | float) or (isinstance(value, str) and "_" not in value)
            number = float(cast(str | float, value)) if given else math.nan
        except (ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            held = repr(value) if isinstance(value, float) else kind(value)
            raise InputError(f"{self.where}: the field {field!r} holds {held}, not a finite number")
        return number

    def label(self, field: str) -> str:
        """Returns the text in a field of the record. Raises InputError if it is missing, blank or not a string."""
        value = self._present(field)
        if not isinstance(value, str) or not value.strip():
            held = "nothing" if isinstance(value, str) else kind(value)
            raise InputError(f"{self.where}: the field {field!r} holds {held}, not a name")
        return value

    def _present(self, field: str) -> object:
        if field not in self.record:
            raise InputError(f"{self.where}: there is no field {field!r}; {did_you_mean(field, self.record)}")
        return self.record[field]


Responses = dict[str, Response]
"""Responses of one model, by the question's text."""


def read_responses(config: ResponsesConfig) -> dict[str, Responses]:
    """Reads the responses of all models, by the model's name, in the order of the files.

    Error messages name lines and never quote a question or a response: both may be offensive.

    Raises:
      InputError: a file cannot be read, a field is missing, a model has two responses to a question, or two files give
        the same model name (without `model_field`).
    """
    if not config.files:
        raise InputError("config.evaluation.responses.files is empty, but names the files with the responses")
    models: dict[str, Responses] = {}
    for path in map(Path, config.files):
        if config.model_field is None and path.stem in models:
            raise InputError(
                f"{path} would be the model {path.stem!r}, as another of config.evaluation.responses.files is"
            )
        for record, where in records_of(path):
            model = path.stem if config.model_field is None else text_field(record, config.model_field, where)
            responses = models.setdefault(model, {})
            prompt = text_field(record, config.prompt_field, where)
            if prompt in responses:
                raise InputError(
                    f"{where}: the question has a response of {model!r} already, in {responses[prompt].where}"
                )
            responses[prompt] = Response(prompt, text_field(record, config.response_field, where), record, where)
    return models


def records_of(path: str | Path) -> Iterator[tuple[dict, str]]:
    """Yields the records of a file, with their positions "file:line". Raises InputError if it cannot be read."""
    return csv_records(path) if Path(path).suffix.lower() == ".csv" else read_records(path)


def model_of(models: Mapping[str, Responses], name: str) -> Responses:
    """Returns one model's responses. Raises InputError if there is no model of that name."""
    if name not in models:
        raise InputError(f"there are no responses of a model {name!r}; {did_you_mean(name, models)}")
    return models[name]


def check_same_questions(first: Responses, second: Responses, names: tuple[str, str]) -> None:
    """Refuses two models with responses to different questions. Raises InputError, which names a line."""
    for these, those, name in ((first, second, names[1]), (second, first, names[0])):
        for prompt, response in these.items():
            if prompt not in those:
                raise InputError(f"{response.where}: the question has no response of the model {name!r}")

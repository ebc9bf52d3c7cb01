"""Answers to any file of questions, for a judge: BeaverTails-Evaluation, for example."""

import dataclasses

from rich.markup import escape
from rich.table import Table

from aligner_jax.data.prompt_format import TemplateName
from aligner_jax.data.sources.values import text_field
from aligner_jax.decoding.choose import Sampling
from aligner_jax.errors import InputError
from aligner_jax.evals.interface import Evaluation, Outcome, Run
from aligner_jax.evals.response_files import records_of
from aligner_jax.evals.responses import RESPONSES, Question, respond
from aligner_jax.runtime.fields import number


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnswersOptions:
    """Where the questions are and how they are answered.

    Attributes:
      path: JSON, JSON lines, Parquet or, with the suffix .csv, CSV.
      prompt_field: the question's text; every one is asked once.
      category_field: goes into the file of responses, "" where a record has none.
      template, system: see `PromptFormat.resolve`.
      temperature: 0: greedy.
      top_k: 0: all tokens.
    """

    path: str
    prompt_field: str = "prompt"
    category_field: str = "category"
    template: TemplateName = "auto"
    system: str | None = None
    temperature: float = number(0.0, least=0)
    top_k: int = number(0, least=0)
    max_new_tokens: int = number(128, least=1)


def read_questions(options: AnswersOptions) -> list[Question]:
    """The questions of the file, numbered from 1. Messages quote none of them.

    Raises:
      InputError: the file cannot be read, a record has no question, or one that was there before; names the line.
    """
    questions: list[Question] = []
    seen: dict[str, str] = {}
    for record, where in records_of(options.path):
        prompt = text_field(record, options.prompt_field, where)
        if prompt in seen:
            raise InputError(f"{where}: the question is in {seen[prompt]} already")
        seen[prompt] = where
        category = text_field(record, options.category_field, where, default="")
        questions.append(Question(str(len(questions) + 1), prompt, category))
    return questions


def evaluate(run: Run, options: AnswersOptions) -> Outcome:
    """Answers the questions: the files of responses are the result, and the scores say only how many there are."""
    questions = read_questions(options)[: run.config.limit]
    responses = respond(
        run, questions, template=options.template, system=options.system,
        sampling=Sampling(options.temperature, options.top_k), max_new_tokens=options.max_new_tokens,
    )  # fmt: skip
    empty = sum(not each.response for each in responses)
    table = Table(title="Answers to be judged", title_justify="left")
    for heading in ("model", "answers", "empty", "file"):
        table.add_column(heading, justify="left" if heading in ("model", "file") else "right", overflow="fold")
    file = escape(str(run.folder / f"{RESPONSES}.jsonl"))
    table.add_row(escape(run.model.name), str(len(responses)), str(empty), file)
    return Outcome({"model": run.model.name, "responses": len(responses), "empty": empty}, table)


ANSWERS = Evaluation(AnswersOptions, evaluate)

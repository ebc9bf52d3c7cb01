"""Answers the questions of any file, for example BeaverTails-Evaluation, for a judge."""

import dataclasses

from aligner_jax.data.prompt_format import TemplateName
from aligner_jax.data.sources.values import text_field
from aligner_jax.decoding.choose import Sampling
from aligner_jax.errors import InputError
from aligner_jax.evals.interface import Evaluation, Outcome, Run
from aligner_jax.evals.response_files import records_of
from aligner_jax.evals.responses import Question, respond, table_of
from aligner_jax.runtime.fields import number


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnswersOptions:
    """Options of the evaluation "answers".

    Attributes:
      path: file of the questions: JSON, JSON lines, Parquet or, with the suffix .csv, CSV.
      prompt_field: field with the question's text.
      category_field: field with the question's category, which is copied to the file of responses; "" if a record has
        none.
      template, system: format of the prompts; see `PromptFormat.resolve`.
      temperature: sampling temperature; 0 is greedy.
      top_k: number of most probable tokens to sample from; 0 means all.
      max_new_tokens: tokens of an answer at most.
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
    """Reads the questions of the file; their ids count from 1. Error messages quote no question.

    Raises:
      InputError: the file cannot be read, or a record has no question or repeats one. Names the line.
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
    """Answers the questions and writes the files of responses. The scores are only the counts of responses."""
    questions = read_questions(options)[: run.config.limit]
    responses = respond(
        run, questions, template=options.template, system=options.system,
        sampling=Sampling(options.temperature, options.top_k), max_new_tokens=options.max_new_tokens,
    )  # fmt: skip
    empty = sum(not each.response for each in responses)
    counts = {"answers": str(len(responses)), "empty": str(empty)}
    table = table_of("Answers to be judged", run.model.name, counts, run.folder)
    return Outcome({"model": run.model.name, "responses": len(responses), "empty": empty}, table)


ANSWERS = Evaluation(AnswersOptions, evaluate)

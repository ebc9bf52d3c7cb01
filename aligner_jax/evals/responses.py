"""Generates responses to questions, and writes the files that a judge reads."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from aligner_jax.decoding.choose import Sampling
from aligner_jax.evals.generating import Prompt, encoded, generate
from aligner_jax.evals.interface import Run
from aligner_jax.runtime.files import write_atomically
from aligner_jax.runtime.tables import Table

RESPONSES = "responses"
"""Name of the files, without .jsonl and .csv."""
_CSV_COLUMNS = ("file_name", "qa_pair_id", "prompt", "response")


class Question(NamedTuple):
    """A question to a model; `category` may be empty."""

    question_id: str
    prompt: str
    category: str = ""


class GeneratedResponse(NamedTuple):
    """A model's response, with the question and its category."""

    model: str
    question_id: str
    category: str
    prompt: str
    response: str


def respond(
    run: Run,
    questions: Sequence[Question],
    *,
    template: str,
    system: str | None,
    sampling: Sampling,
    max_new_tokens: int,
    until: tuple[str, ...] = (),
) -> list[GeneratedResponse]:
    """Generates the model's responses, stripped of white space, and writes them to the run's folder.

    Args:
      run: run of the evaluation.
      questions: questions to answer.
      template, system: format of the prompts; see `PromptFormat.resolve`.
      sampling: temperature, top-k and top-p.
      max_new_tokens: tokens of a response at most.
      until: stop texts.

    Raises:
      InputError: a question cannot be rendered or does not fit the model's context, the base has no embedding of a
        token, or a file cannot be written.
    """
    subject = run.model
    prompt_format = run.prompt_format(template, system)
    texts = [prompt_format.render(question.prompt, subject.tokenizer) for question in questions]
    prompts = [
        Prompt(encoded(subject, text), max_new_tokens, sampling, until, number) for number, text in enumerate(texts)
    ]
    texts = generate(
        subject, prompts, run.result_store("generated"), run.console, seed=run.config.seed, what="responses"
    )
    responses = [
        GeneratedResponse(subject.name, question.question_id, question.category, question.prompt, text.strip())
        for question, text in zip(questions, texts, strict=True)
    ]
    write_responses(run.folder, responses)
    return responses


def table_of(title: str, name: str, counts: Mapping[str, str], folder: Path) -> Table:
    """Returns a table of a model's responses: its name, the counts, and the file that `write_responses` writes."""
    table = Table(title)
    row = {"model": name, **counts, "file": str(folder / f"{RESPONSES}.jsonl")}
    for heading in row:
        table.add_column(heading, justify="right" if heading in counts else "left")
    table.add_row(*row.values())
    return table


def write_responses(folder: Path, responses: Iterable[GeneratedResponse]) -> None:
    """Writes responses.jsonl, with one object per response, and responses.csv, with the columns of the authors' file.

    Raises:
      InputError: a file cannot be written.
    """
    responses = list(responses)
    lines = [json.dumps(response._asdict(), ensure_ascii=False) + "\n" for response in responses]
    write_atomically(folder / f"{RESPONSES}.jsonl", "".join(lines))
    table = io.StringIO()
    # All fields are quoted: with "\n" as line terminator, Python's writer does not quote a field for a "\r" in it.
    writer = csv.writer(table, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerow(_CSV_COLUMNS)
    writer.writerows((each.model, each.question_id, each.prompt, each.response) for each in responses)
    write_atomically(folder / f"{RESPONSES}.csv", table.getvalue())

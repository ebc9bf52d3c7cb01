"""Questions answered one by one, and the files of responses that a judge reads."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from aligner_jax.decoding.choose import Sampling
from aligner_jax.evals.generating import Prompt, encoded, generate
from aligner_jax.evals.interface import Run
from aligner_jax.runtime.files import write_atomically

RESPONSES = "responses"
"""The files' name, before .jsonl and .csv."""
_CSV_COLUMNS = ("file_name", "qa_pair_id", "prompt", "response")


class Question(NamedTuple):
    """What is asked; `category` may be empty."""

    question_id: str
    prompt: str
    category: str = ""


class Response(NamedTuple):
    """What a model answered."""

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
) -> list[Response]:
    """The model's answers, without white space at their ends; also written to the run's folder.

    Args:
      template, system: how a question becomes a prompt, see `PromptFormat.resolve`.

    Raises:
      InputError: a question cannot be asked, or a file cannot be written.
    """
    subject = run.model
    prompt_format = run.prompt_format(template, system)
    texts = [prompt_format.render(question.prompt, subject.tokenizer) for question in questions]
    prompts = [
        Prompt(encoded(subject, text), max_new_tokens, sampling, until, number) for number, text in enumerate(texts)
    ]
    texts = generate(subject, prompts, run.kept("generated"), run.console, seed=run.config.seed, what="responses")
    responses = [
        Response(subject.name, question.question_id, question.category, question.prompt, text.strip())
        for question, text in zip(questions, texts, strict=True)
    ]
    write_responses(run.folder, responses)
    return responses


def write_responses(folder: Path, responses: Iterable[Response]) -> None:
    """Writes responses.jsonl, an object a response, and responses.csv with the columns of the authors' own such file.

    Raises:
      InputError: they cannot be written.
    """
    responses = list(responses)
    lines = [json.dumps(response._asdict(), ensure_ascii=False) + "\n" for response in responses]
    write_atomically(folder / f"{RESPONSES}.jsonl", "".join(lines))
    table = io.StringIO()
    # Of a carriage return within a text Python's writer takes no notice where rows end in "\n" alone.
    writer = csv.writer(table, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerow(_CSV_COLUMNS)
    writer.writerows((each.model, each.question_id, each.prompt, each.response) for each in responses)
    write_atomically(folder / f"{RESPONSES}.csv", table.getvalue())

"""Vicuna-bench: 80 open questions, answered as the paper's authors did, for a judge to compare.

Their repository samples at temperature 0.7 among the 200 most probable tokens, makes at most 100 new ones, asks in
Alpaca's template, cuts an answer where it begins another "### Instruction", and strips white space. The paper names the
temperature and the number of tokens (section 4.1).
"""

import dataclasses

from rich.markup import escape
from rich.table import Table

from aligner_jax.data.prompt_format import TemplateName
from aligner_jax.data.sources.records import read_records
from aligner_jax.data.sources.values import check_text, text_field
from aligner_jax.decoding.choose import Sampling
from aligner_jax.errors import InputError
from aligner_jax.evals.interface import Evaluation, Outcome, Run
from aligner_jax.evals.responses import RESPONSES, Question, respond
from aligner_jax.runtime.fields import number


@dataclasses.dataclass(frozen=True, kw_only=True)
class VicunaOptions:
    """Where the questions are and how they are answered.

    Attributes:
      path: FastChat's question.jsonl: an object a line with question_id, category and turns, of which the first is
        asked.
      template, system: see `PromptFormat.resolve`.
      top_k: 0: all tokens.
    """

    path: str
    template: TemplateName = "alpaca"
    system: str | None = None
    temperature: float = number(0.7, least=0)
    top_k: int = number(200, least=0)
    max_new_tokens: int = number(100, least=1)


def read_questions(path: str) -> list[Question]:
    """The questions of a file.

    Raises:
      InputError: the file cannot be read, or a line is no question; names file and line.
    """
    questions: list[Question] = []
    for record, where in read_records(path):
        turns, question_id = record.get("turns"), record.get("question_id")
        if not isinstance(turns, list) or not turns or not isinstance(turns[0], str) or not turns[0].strip():
            raise InputError(f"{where}: its field 'turns' is not a list that begins with a question")
        if not isinstance(question_id, int | str):
            raise InputError(f"{where}: it has no 'question_id'")
        question_id = check_text(str(question_id), "the field 'question_id'", where)
        turn = check_text(turns[0], "the field 'turns'", where)
        questions.append(Question(question_id, turn, text_field(record, "category", where, default="")))
    return questions


def evaluate(run: Run, options: VicunaOptions) -> Outcome:
    """Answers the questions: the files of responses are the result, and the scores say only how long they are."""
    questions = read_questions(options.path)[: run.config.limit]
    responses = respond(
        run, questions, template=options.template, system=options.system,
        sampling=Sampling(options.temperature, options.top_k), max_new_tokens=options.max_new_tokens,
        until=("### Instruction",),
    )  # fmt: skip
    words = [len(each.response.split()) for each in responses]
    scores = {
        "model": run.model.name,
        "responses": len(responses),
        "empty": sum(not each.response for each in responses),
        "mean_words": sum(words) / len(words),
    }
    table = Table(title="Vicuna-bench, answers to be judged", title_justify="left")
    for heading in ("model", "answers", "empty", "words an answer", "file"):
        table.add_column(heading, justify="left" if heading in ("model", "file") else "right", overflow="fold")
    file = escape(str(run.folder / f"{RESPONSES}.jsonl"))
    table.add_row(
        escape(run.model.name), str(len(responses)), str(scores["empty"]), f"{scores['mean_words']:.1f}", file
    )
    return Outcome(scores, table)


VICUNA = Evaluation(VicunaOptions, evaluate)

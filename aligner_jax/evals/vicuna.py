"""Answers the 80 open questions of Vicuna-bench with the settings of the paper's authors, for a judge to compare.

Their repository uses Alpaca's template, samples at most 100 tokens at temperature 0.7 with top-k 200, cuts an answer at
another "### Instruction", and strips white space. The paper gives the temperature and the number of tokens (section
4.1).
"""

import dataclasses

from aligner_jax.data.prompt_format import TemplateName
from aligner_jax.data.sources.records import read_records
from aligner_jax.data.sources.values import check_text, text_field
from aligner_jax.decoding.choose import Sampling
from aligner_jax.errors import InputError
from aligner_jax.evals.interface import Evaluation, Outcome, Run
from aligner_jax.evals.responses import Question, respond, table_of
from aligner_jax.runtime.fields import number


@dataclasses.dataclass(frozen=True, kw_only=True)
class VicunaOptions:
    """Options of the evaluation "vicuna".

    Attributes:
      path: FastChat's question.jsonl, whose objects have question_id, category and turns. Only the first turn is asked.
      template, system: format of the prompts; see `PromptFormat.resolve`.
      temperature: sampling temperature; 0 is greedy.
      top_k: number of most probable tokens to sample from; 0 means all.
      max_new_tokens: tokens of an answer at most.
    """

    path: str
    template: TemplateName = "alpaca"
    system: str | None = None
    temperature: float = number(0.7, least=0)
    top_k: int = number(200, least=0)
    max_new_tokens: int = number(100, least=1)


def read_questions(path: str) -> list[Question]:
    """Reads the questions of a file.

    Raises:
      InputError: the file cannot be read, or a line is not a question. Names file and line.
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
    """Answers the questions and writes the files of responses. The scores are only their number and length."""
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
    counts = {
        "answers": str(len(responses)), "empty": str(scores["empty"]), "words an answer": f"{scores['mean_words']:.1f}"
    }  # fmt: skip
    return Outcome(scores, table_of("Vicuna-bench, answers to be judged", run.model.name, counts, run.folder))


VICUNA = Evaluation(VicunaOptions, evaluate)

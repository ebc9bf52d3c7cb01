"""Records of a question and an answer under any of their usual names."""

from collections.abc import Mapping

from aligner_jax.data.sources.example import Instruction
from aligner_jax.data.sources.source import Source
from aligner_jax.data.sources.values import text_field
from aligner_jax.errors import InputError

QUESTIONS = ("instruction", "prompt", "question", "query")
ANSWERS = ("output", "completion", "response", "answer")
INPUTS = ("input", "context")

_OWN_FORMATS = {
    ("instruction", "output"), ("instruction", "response"), ("question", "answer"), ("query", "response"),
    ("prompt", "completion"),
}  # fmt: skip
_OTHERS = ("messages", "conversations", "chosen", "rejected", "is_safe", "response_0")


def parse(record: dict, where: str) -> Instruction:
    """Parses a question, its answer and, if there is one, further input.

    The question is the only field of `QUESTIONS`, or `input` if there is none; the answer is the only one of `ANSWERS`.

    Raises:
      InputError: question or answer are missing, there are two of them, or a field is not text.
    """
    question = _only(record, QUESTIONS, ("input",), "question", where)
    further = next((name for name in INPUTS if name in record and name != question), None)
    return Instruction(
        instruction=text_field(record, question, where),
        input="" if further is None else text_field(record, further, where, default=""),
        output=text_field(record, _only(record, ANSWERS, (), "answer", where), where),
    )


def _only(record: Mapping[str, object], names: tuple[str, ...], more: tuple[str, ...], what: str, where: str) -> str:
    """Returns the only one of `names` that the record has, or else the first of `more`."""
    found = [name for name in names if name in record] or [name for name in more if name in record]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(
            f"{where}: {' and '.join(map(repr, found))} may both be the {what}: set data.format to 'fields' and "
            "name it in data.fields"
        )
    present = ", ".join(map(repr, record)) or "none"
    raise InputError(
        f"{where}: the record has no {what}, which is one of {', '.join(map(repr, names))}; its fields are {present}"
    )


def _fits(record: dict) -> bool:
    if any(name in record for name in _OTHERS) or isinstance(record.get("response"), list):
        return False
    questions = [name for name in QUESTIONS if name in record] or [name for name in ("input",) if name in record]
    answers = [name for name in ANSWERS if name in record]
    return len(questions) == len(answers) == 1 and (questions[0], answers[0]) not in _OWN_FORMATS


QUESTION_ANSWER = Source(
    name="question_answer",
    parse=parse,
    fits=_fits,
    record=Instruction,
    uses=(*QUESTIONS, *ANSWERS, *INPUTS),
    ignores=("text",),
    about="A question and an answer under any of their usual names, perhaps with further input.",
)

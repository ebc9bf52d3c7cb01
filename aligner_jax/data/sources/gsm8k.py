"""GSM8K's records: question, answer."""

from aligner_jax.data.sources.example import Instruction
from aligner_jax.data.sources.source import Source
from aligner_jax.data.sources.values import text_field


def parse(record: dict, where: str) -> Instruction:
    """Parses a question and its answer. The answer keeps its <<calculations>> and its last line "#### N".

    Raises:
      InputError: `question` or `answer` is missing or not text.
    """
    return Instruction(text_field(record, "question", where), "", text_field(record, "answer", where))


GSM8K = Source(
    name="gsm8k",
    parse=parse,
    fits=lambda record: "question" in record and "answer" in record,
    record=Instruction,
    uses=("question", "answer"),
    about="8,792 word problems of school arithmetic with solutions by people; 1,319 of them are the test.",
    homepage="https://github.com/openai/grade-school-math",
    licence="MIT",
    root="https://raw.githubusercontent.com/openai/grade-school-math/master/grade_school_math/data/",
    files={"train": ("train.jsonl",), "test": ("test.jsonl",)},
)

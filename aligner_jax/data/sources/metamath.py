"""MetaMathQA's records: query, response, type, original_question."""

from aligner_jax.data.sources.example import Instruction
from aligner_jax.data.sources.source import Source
from aligner_jax.data.sources.values import text_field


def parse(record: dict, where: str) -> Instruction:
    """Parses a question and its answer; other fields are ignored.

    Raises:
      InputError: `query` or `response` is missing or not text.
    """
    return Instruction(text_field(record, "query", where), "", text_field(record, "response", where))


METAMATH = Source(
    name="metamath",
    parse=parse,
    fits=lambda record: "query" in record and "response" in record,
    record=Instruction,
    uses=("query", "response"),
    ignores=("original_question",),
    about="395,000 questions made from the training questions of GSM8K and MATH, with answers by GPT-3.5.",
    homepage="https://huggingface.co/datasets/meta-math/MetaMathQA",
    licence="MIT",
    root="https://huggingface.co/datasets/meta-math/MetaMathQA/resolve/main/",
    files={"train": ("MetaMathQA-395K.json",)},
)

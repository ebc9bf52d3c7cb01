"""Dolly's records: instruction, context, response, category."""

from aligner_jax.data.sources.example import Instruction
from aligner_jax.data.sources.source import Source
from aligner_jax.data.sources.values import text_field


def parse(record: dict, where: str) -> Instruction:
    """Parses a Dolly record; `context` may be missing. Other fields are ignored.

    Raises:
      InputError: `instruction` or `response` is missing, or a field is not text.
    """
    return Instruction(
        instruction=text_field(record, "instruction", where),
        input=text_field(record, "context", where, default=""),
        output=text_field(record, "response", where),
    )


DOLLY = Source(
    name="dolly",
    parse=parse,
    fits=lambda record: "instruction" in record and "response" in record and "output" not in record,
    record=Instruction,
    uses=("instruction", "context", "response"),
    about="15,011 instructions with answers, both written by people, in eight categories.",
    homepage="https://huggingface.co/datasets/databricks/databricks-dolly-15k",
    licence="CC BY-SA 3.0",
    root="https://huggingface.co/datasets/databricks/databricks-dolly-15k/resolve/main/",
    files={"train": ("databricks-dolly-15k.jsonl",)},
)

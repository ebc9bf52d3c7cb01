"""Stanford Alpaca's records: instruction, input, output. Cleaned Alpaca has the same fields."""

import dataclasses

from aligner_jax.data.sources.example import Instruction
from aligner_jax.data.sources.source import Source
from aligner_jax.data.sources.values import text_field


def parse(record: dict, where: str) -> Instruction:
    """Parses an Alpaca record; `input` may be missing.

    Raises:
      InputError: `instruction` or `output` is missing, or a field is not text.
    """
    return Instruction(
        instruction=text_field(record, "instruction", where),
        input=text_field(record, "input", where, default=""),
        output=text_field(record, "output", where),
    )


_OTHERS = {"response", "completion", "answer", "chosen"}
"""Answer fields of other sources."""

ALPACA = Source(
    name="alpaca",
    parse=parse,
    # A record without an answer also fits, so that `parse` reports the missing field.
    fits=lambda record: "instruction" in record and ("output" in record or not _OTHERS & record.keys()),
    record=Instruction,
    uses=("instruction", "input", "output"),
    # `text` repeats the prompt and the answer.
    ignores=("text",),
    about="52,002 instructions with answers by text-davinci-003.",
    homepage="https://github.com/tatsu-lab/stanford_alpaca",
    licence="CC BY-NC 4.0",
    root="https://raw.githubusercontent.com/tatsu-lab/stanford_alpaca/main/",
    files={"train": ("alpaca_data.json",)},
)

ALPACA_CLEANED = dataclasses.replace(
    ALPACA,
    name="alpaca_cleaned",
    # Records look the same as Alpaca's and are parsed alike, so they need not be told apart.
    fits=lambda record: False,
    about="Alpaca with wrong, empty and merged records corrected or removed.",
    homepage="https://github.com/gururise/AlpacaDataCleaned",
    root="https://raw.githubusercontent.com/gururise/AlpacaDataCleaned/main/",
    files={"train": ("alpaca_data_cleaned.json",)},
)

"""Stanford Alpaca's records: instruction, input, output. Cleaned Alpaca has the same."""

import dataclasses

from aligner_jax.data.sources.example import Instruction
from aligner_jax.data.sources.source import Source
from aligner_jax.data.sources.values import text_field


def parse(record: dict, where: str) -> Instruction:
    """Returns an Alpaca record; `input` may be missing.

    Raises:
      InputError: `instruction` or `output` is missing, or a field is not text.
    """
    return Instruction(
        instruction=text_field(record, "instruction", where),
        input=text_field(record, "input", where, default=""),
        output=text_field(record, "output", where),
    )


_OTHERS = {"response", "chosen"}
"""Names of Dolly's answers, and of preferences'."""

ALPACA = Source(
    name="alpaca",
    parse=parse,
    # A missing answer is for `parse` to complain about.
    fits=lambda record: "instruction" in record and ("output" in record or not _OTHERS & record.keys()),
    record=Instruction,
    uses=("instruction", "input", "output"),
    # The whole prompt with its answer, as text.
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
    # Nothing in a record tells the two apart, and nothing need.
    fits=lambda record: False,
    about="Alpaca with wrong, empty and merged records corrected or removed.",
    homepage="https://github.com/gururise/AlpacaDataCleaned",
    root="https://raw.githubusercontent.com/gururise/AlpacaDataCleaned/main/",
    files={"train": ("alpaca_data_cleaned.json",)},
)

"""Stanford Alpaca's records: instruction, input, output."""

from aligner_jax.data.sources.example import Instruction
from aligner_jax.data.sources.records import text_field


def parse(record: dict, where: str) -> Instruction:
    """An Alpaca record; `input` may be missing. Other fields are ignored.

    An empty output is kept, as in the paper's training: its one target is EOS. The Alpaca data have a few of them.

    Raises:
      InputError: `instruction` or `output` is missing, or a field is not text.
    """
    return Instruction(
        instruction=text_field(record, "instruction", where),
        input=text_field(record, "input", where, default=""),
        output=text_field(record, "output", where),
    )

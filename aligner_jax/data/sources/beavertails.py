"""BeaverTails' records: prompt, response, category, is_safe."""

from aligner_jax.data.sources.example import Instruction
from aligner_jax.data.sources.source import Dropped, Source
from aligner_jax.data.sources.values import flag_field, text_field


def parse(record: dict, where: str) -> Instruction:
    """Parses a prompt and its safe response; other fields are ignored.

    BeaverTails' evaluation set is refused: its records have no `response` to learn.

    Raises:
      InputError: `prompt`, `response` or `is_safe` is missing or of another type.
      Dropped: the response is not safe.
    """
    parsed = Instruction(text_field(record, "prompt", where), "", text_field(record, "response", where))
    if not flag_field(record, "is_safe", where):
        raise Dropped("unsafe answer")
    return parsed


BEAVERTAILS = Source(
    name="beavertails",
    parse=parse,
    fits=lambda record: "prompt" in record and "response" in record and "is_safe" in record,
    record=Instruction,
    uses=("prompt", "response", "is_safe"),
    about="Questions that provoke, with responses that people judged safe or not; only the safe ones are kept.",
    homepage="https://huggingface.co/datasets/PKU-Alignment/BeaverTails",
    licence="CC BY-NC 4.0",
    root="https://huggingface.co/datasets/PKU-Alignment/BeaverTails/resolve/main/round0/330k/",
    files={"train": ("train.jsonl.xz",), "test": ("test.jsonl.xz",)},
)

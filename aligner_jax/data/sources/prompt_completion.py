"""TRL's prompt-completion records: two texts, or two lists of messages."""

from aligner_jax.data.sources import messages
from aligner_jax.data.sources.example import Conversation, Instruction
from aligner_jax.data.sources.source import Dropped, Source
from aligner_jax.data.sources.values import flag_field, text_field
from aligner_jax.errors import InputError


def parse(record: dict, where: str) -> Instruction | Conversation:
    """Returns two texts as instruction and output, and two lists of messages as one conversation.

    Raises:
      InputError: a field is missing or of another type than the other, or no message is the assistant's.
      Dropped: the record has a `label`, as TRL's unpaired preferences do, and it is false.
    """
    if "label" in record and not flag_field(record, "label", where):
        raise Dropped("unwanted answer")
    if not isinstance(record.get("prompt"), list):
        return Instruction(text_field(record, "prompt", where), "", text_field(record, "completion", where))
    turns = [*messages.turns(record, "prompt", where), *messages.turns(record, "completion", where)]
    if turns[-1]["role"] != "assistant":
        raise InputError(f"{where}: the field 'completion' does not end with a turn of 'assistant'")
    return Conversation(tuple(turns))


PROMPT_COMPLETION = Source(
    name="prompt_completion",
    parse=parse,
    fits=lambda record: "prompt" in record and "completion" in record,
    record=Instruction,
    uses=("prompt", "completion", "label"),
    turn=("role", "content"),
    about="Prompts with their completions, as texts or as messages.",
)

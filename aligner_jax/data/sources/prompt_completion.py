"""TRL's prompt-completion records: two texts, or two lists of messages."""

from aligner_jax.data.sources import messages
from aligner_jax.data.sources.example import Conversation, Instruction
from aligner_jax.data.sources.source import Dropped, Source
from aligner_jax.data.sources.values import flag_field, text_field
from aligner_jax.errors import InputError


def parse(record: dict, where: str) -> Instruction | Conversation:
    """Parses two strings as instruction and output, or two lists of messages as one conversation.

    Only answers in the completion are targets, as in TRL; answers in the prompt are not.

    Raises:
      InputError: a field is missing, the two fields differ in type, or the completion does not end with the assistant.
      Dropped: the record has a false `label`, a field of TRL's unpaired preferences.
    """
    if "label" in record and not flag_field(record, "label", where):
        raise Dropped("unwanted answer")
    if not isinstance(record.get("prompt"), list):
        return Instruction(text_field(record, "prompt", where), "", text_field(record, "completion", where))
    prompt, completion = (messages.turns(record, name, where) for name in ("prompt", "completion"))
    if not completion or completion[-1]["role"] != "assistant":
        raise InputError(f"{where}: the field 'completion' does not end with a turn of 'assistant'")
    for message in prompt:
        if message["role"] == "assistant":
            message["learned"] = False
    return messages.until_last_answer([*prompt, *completion])


PROMPT_COMPLETION = Source(
    name="prompt_completion",
    parse=parse,
    fits=lambda record: "prompt" in record and "completion" in record,
    record=Instruction,
    uses=("prompt", "completion", "label"),
    turn=messages.TURN,
    about="Prompts with their completions, as texts or as messages.",
)

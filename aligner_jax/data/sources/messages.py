"""Chat records: {"messages": [{"role": …, "content": …}, …]}."""

from aligner_jax.data.sources.example import Conversation, Message
from aligner_jax.data.sources.records import text_field
from aligner_jax.errors import InputError


def parse(record: dict, where: str) -> Conversation:
    """A conversation; which roles may follow each other is for the chat template to say. Other fields are ignored.

    What follows the assistant's last turn is left out, for nothing in it is a target.

    Raises:
      InputError: `messages` is missing or not a list of objects with `role` and `content`, or no turn is the
        assistant's.
    """
    turns = record.get("messages")
    if turns is None:
        text_field(record, "messages", where)
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise InputError(f"{where}: the field 'messages' is not a list of objects with 'role' and 'content'")
    messages: list[Message] = []
    for number, turn in enumerate(turns, 1):
        at = f"{where}, message {number}"
        messages.append({"role": text_field(turn, "role", at), "content": text_field(turn, "content", at)})
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers:
        raise InputError(f"{where}: no message has the role 'assistant', so there is nothing to learn")
    return Conversation(tuple(messages[: answers[-1] + 1]))

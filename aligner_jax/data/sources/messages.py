"""Chat records: {"messages": [{"role": …, "content": …}, …]}."""

from aligner_jax.data.sources.example import Conversation, Message
from aligner_jax.data.sources.source import Source
from aligner_jax.data.sources.values import list_field, text_field
from aligner_jax.errors import InputError


def parse(record: dict, where: str, name: str = "messages") -> Conversation:
    """A conversation; which roles may follow each other is for the chat template to say. Other fields are ignored.

    What follows the assistant's last turn is left out, for nothing in it is a target.

    Args:
      record: the object.
      where: where it stands.
      name: the field that holds the turns.

    Raises:
      InputError: the field is missing or not a list of objects with `role` and `content`, or no turn is the
        assistant's.
    """
    messages = turns(record, name, where)
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers:
        raise InputError(f"{where}: no message has the role 'assistant', so there is nothing to learn")
    return Conversation(tuple(messages[: answers[-1] + 1]))


def turns(record: dict, name: str, where: str) -> list[Message]:
    """The turns under `name`.

    Raises:
      InputError: the field is missing or not a list of objects with `role` and `content`.
    """
    messages: list[Message] = []
    for number, turn in enumerate(list_field(record, name, where, "'role' and 'content'"), 1):
        at = f"{where}, {'message' if name == 'messages' else f'message of {name!r}'} {number}"
        messages.append({"role": text_field(turn, "role", at), "content": text_field(turn, "content", at)})
    return messages


MESSAGES = Source(
    name="messages",
    parse=parse,
    fits=lambda record: "messages" in record and "chosen" not in record,
    record=Conversation,
    uses=("messages",),
    turn=("role", "content"),
    # The first turn once more.
    ignores=("prompt",),
    about="Chats as lists of messages with role and content.",
)

"""Chat records: {"messages": [{"role": …, "content": …}, …]}."""

from aligner_jax.data.sources.example import Conversation, Message
from aligner_jax.data.sources.source import Dropped, Source
from aligner_jax.data.sources.values import list_field, text_field
from aligner_jax.errors import InputError


def parse(record: dict, where: str, name: str = "messages") -> Conversation:
    """Parses a conversation; other fields are ignored. The chat template checks the order of the roles.

    Turns after the last target answer are left out, because none of them is a target.

    Args:
      record: JSON object.
      where: "file:line" of the object, for error messages.
      name: name of the field that holds the turns.

    Raises:
      InputError: the field is missing or not a list of objects with `role` and `content`, or no turn is the
        assistant's.
      Dropped: see `turns` and `until_last_answer`.
    """
    messages = turns(record, name, where)
    if not any(message["role"] == "assistant" for message in messages):
        raise InputError(f"{where}: no message has the role 'assistant', so there is nothing to learn")
    return until_last_answer(messages)


def until_last_answer(messages: list[Message]) -> Conversation:
    """Returns the messages up to the last target answer. Raises `Dropped` if there is none."""
    answers = [i for i, turn in enumerate(messages) if turn["role"] == "assistant" and turn.get("learned", True)]
    if not answers:
        raise Dropped("no answer")
    return Conversation(tuple(messages[: answers[-1] + 1]))


def turns(record: dict, name: str, where: str) -> list[Message]:
    """Returns the turns in the field `name`.

    Raises:
      InputError: the field is missing or not a list of objects with `role` and `content`; or see `turn_of`.
      Dropped: a turn calls a tool, which a `Message` cannot represent.
    """
    messages: list[Message] = []
    for number, turn in enumerate(list_field(record, name, where, "'role' and 'content'"), 1):
        at = f"{where}, {'message' if name == 'messages' else f'message of {name!r}'} {number}"
        messages.append(turn_of(turn, text_field(turn, "role", at), "content", at))
    return messages


def turn_of(turn: dict, role: str, content: str, where: str) -> Message:
    """Returns one turn. The field `content` holds its text: a string, or a list of text parts.

    An assistant turn with `weight` 0 (as in OpenAI's files) or `train` false is not a target.

    Raises:
      InputError: the content is neither a string nor text parts, or the weight is neither 0 nor 1.
      Dropped: the turn calls a tool, with or without text.
    """
    if any(turn.get(name) for name in _CALLS):
        raise Dropped("calls of tools")
    message: Message = {"role": role, "content": _content(turn, content, where)}
    weight = turn.get("weight")
    if weight is not None and weight not in (0, 1):
        raise InputError(f"{where}: the field 'weight' should be 0 or 1: other weights of a turn are not supported")
    if role == "assistant" and (weight == 0 or turn.get("train") is False):
        message["learned"] = False
    return message


def _content(turn: dict, name: str, where: str) -> str:
    parts = turn.get(name)
    if not isinstance(parts, list) or not parts:
        return text_field(turn, name, where)
    texts = []
    for part in parts:
        kind = part.get("type", "text") if isinstance(part, dict) else None
        if kind != "text":
            raise InputError(f"{where}: the field {name!r} has a part that is not a text, but {str(kind)[:60]!r}")
        texts.append(text_field(part, "text", where))
    return "".join(texts)


_CALLS = ("tool_calls", "function_call")
TURN = ("role", "content", "weight", "train")
"""Fields of a turn that are read."""

MESSAGES = Source(
    name="messages",
    parse=parse,
    fits=lambda record: "messages" in record and "chosen" not in record,
    record=Conversation,
    uses=("messages",),
    turn=TURN,
    # `prompt` repeats the first turn.
    ignores=("prompt",),
    about="Chats as lists of messages with role and content.",
)

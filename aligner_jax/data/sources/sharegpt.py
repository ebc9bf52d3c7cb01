"""ShareGPT's records: {"conversations": [{"from": …, "value": …}, …]}, or with `role` and `content` in the turns."""

from aligner_jax.data.sources.example import Conversation, Message
from aligner_jax.data.sources.messages import TURN, turn_of, until_last_answer
from aligner_jax.data.sources.source import Dropped, Source
from aligner_jax.data.sources.values import list_field, text_field
from aligner_jax.errors import InputError

_ASSISTANTS = ("gpt", "chatgpt", "assistant", "model", "bing", "bard")
_TOOLS = ("tool", "function", "function_call", "function_response", "observation")
_ROLES = {"human": "user", "user": "user", **dict.fromkeys(_ASSISTANTS, "assistant"), "system": "system"}


def parse(record: dict, where: str) -> Conversation:
    """Parses a conversation.

    Assistant turns before the first user turn are left out, as in FastChat: the data are split by length, so a part may
    begin in the middle of a conversation. Turns after the last target answer are left out too.

    Raises:
      InputError: `conversations` is missing or not a list of objects with `from` and `value`, or a turn's speaker is
        not a human, a known assistant or the system.
      Dropped: no answer is a target, or there are tool calls or results, which need their own forms in a model's chat
        template.
    """
    return until_last_answer(talk(record, where))


def talk(record: dict, where: str) -> list[Message]:
    """Returns the turns in `conversations`, without assistant turns before the first user turn; see `parse`."""
    messages: list[Message] = []
    for number, turn in enumerate(list_field(record, "conversations", where, "'from' and 'value'"), 1):
        message = said_by(turn, f"{where}, turn {number}")
        if message["role"] != "assistant" or any(earlier["role"] == "user" for earlier in messages):
            messages.append(message)
    return messages


def said_by(turn: dict, where: str) -> Message:
    """Returns one turn as a message; see `parse`."""
    by, said = ("role", "content") if "role" in turn and "from" not in turn else ("from", "value")
    speaker = text_field(turn, by, where)
    if speaker in _TOOLS:
        raise Dropped("turns of tools")
    if speaker not in _ROLES:
        raise InputError(f"{where}: the field {by!r} is {speaker!r}, but should be one of {', '.join(_ROLES)}")
    return turn_of(turn, _ROLES[speaker], said, where)


SHAREGPT = Source(
    name="sharegpt",
    parse=parse,
    fits=lambda record: "conversations" in record,
    record=Conversation,
    uses=("conversations",),
    turn=("from", "value", *TURN),
    about="Conversations with ChatGPT that its users shared.",
    homepage="https://huggingface.co/datasets/anon8231489123/ShareGPT_Vicuna_unfiltered",
    licence="Apache-2.0, by whoever gathered them",
    root="https://huggingface.co/datasets/anon8231489123/ShareGPT_Vicuna_unfiltered/resolve/main/",
    files={"train": ("ShareGPT_V3_unfiltered_cleaned_split.json",)},
)

"""ShareGPT's records: {"conversations": [{"from": …, "value": …}, …]}."""

from aligner_jax.data.sources.example import Conversation, Message
from aligner_jax.data.sources.source import Dropped, Source
from aligner_jax.data.sources.values import list_field, text_field
from aligner_jax.errors import InputError

_ASSISTANTS = ("gpt", "chatgpt", "assistant", "bing", "bard")
_ROLES = {"human": "user", "user": "user", **dict.fromkeys(_ASSISTANTS, "assistant"), "system": "system"}


def parse(record: dict, where: str) -> Conversation:
    """A conversation. Turns of the assistant before the first of the user are left out, as FastChat does, for the data
    are cut at a length and a part may begin in the middle; so is what follows the assistant's last turn.

    Raises:
      InputError: `conversations` is missing or not a list of objects with `from` and `value`, or a turn is from
        somebody else than a human, an assistant that the data know, and system.
      Dropped: there is no question with an answer.
    """
    messages: list[Message] = []
    for number, turn in enumerate(list_field(record, "conversations", where, "'from' and 'value'"), 1):
        at = f"{where}, turn {number}"
        speaker = text_field(turn, "from", at)
        if speaker not in _ROLES:
            raise InputError(f"{at}: the field 'from' is {speaker!r}, but should be one of {', '.join(_ROLES)}")
        message: Message = {"role": _ROLES[speaker], "content": text_field(turn, "value", at)}
        if message["role"] != "assistant" or any(earlier["role"] == "user" for earlier in messages):
            messages.append(message)
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers:
        raise Dropped("no answer")
    return Conversation(tuple(messages[: answers[-1] + 1]))


SHAREGPT = Source(
    name="sharegpt",
    parse=parse,
    fits=lambda record: "conversations" in record,
    record=Conversation,
    uses=("conversations",),
    turn=("from", "value"),
    about="Conversations with ChatGPT that its users shared.",
    homepage="https://huggingface.co/datasets/anon8231489123/ShareGPT_Vicuna_unfiltered",
    licence="Apache-2.0, by whoever gathered them",
    root="https://huggingface.co/datasets/anon8231489123/ShareGPT_Vicuna_unfiltered/resolve/main/",
    files={"train": ("ShareGPT_V3_unfiltered_cleaned_split.json",)},
)

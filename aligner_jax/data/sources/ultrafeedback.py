"""UltraFeedback's records as binarized: prompt, and two chats under chosen and rejected."""

from aligner_jax.data.sources.example import Message, Preference
from aligner_jax.data.sources.messages import TURN, turns
from aligner_jax.data.sources.source import Dropped, Source
from aligner_jax.errors import InputError


def parse(record: dict, where: str) -> Preference:
    """Parses the turns that both chats share, and the last turn of each. Other fields, also `prompt`, are ignored.

    Raises:
      InputError: `chosen` or `rejected` is missing, is not a list of objects with `role` and `content`, or does not end
        with a user turn and an assistant turn.
      Dropped: the turns before the answers differ.
    """
    chosen, rejected = (_chat(record, name, where) for name in ("chosen", "rejected"))
    if chosen[:-1] != rejected[:-1]:
        raise Dropped("prompts differ")
    return Preference(prompt=tuple(chosen[:-1]), chosen=chosen[-1]["content"], rejected=rejected[-1]["content"])


def _chat(record: dict, name: str, where: str) -> list[Message]:
    messages = turns(record, name, where)
    if [message["role"] for message in messages[-2:]] != ["user", "assistant"]:
        raise InputError(f"{where}: the field {name!r} does not end with a turn of 'user' and one of 'assistant'")
    return messages


ULTRAFEEDBACK = Source(
    name="ultrafeedback",
    parse=parse,
    fits=lambda record: isinstance(record.get("chosen"), list) and isinstance(record.get("rejected"), list),
    record=Preference,
    uses=("chosen", "rejected"),
    turn=TURN,
    # Both chats begin with `prompt`, and `messages` repeats the preferred one.
    ignores=("prompt", "messages", "score_chosen", "score_rejected"),
    about="63,135 prompts, each with two answers of four by language models: the one GPT-4 rated best, and another.",
    homepage="https://huggingface.co/datasets/HuggingFaceH4/ultrafeedback_binarized",
    licence="MIT",
    root="https://huggingface.co/datasets/HuggingFaceH4/ultrafeedback_binarized/resolve/main/data/",
    files={split: (f"{split}_prefs-00000-of-00001.parquet",) for split in ("train", "test")},
)

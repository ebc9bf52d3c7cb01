"""HH-RLHF's records: two dialogues as text, which differ in the last assistant turn."""

import re

from aligner_jax.data.sources.example import Message, Preference
from aligner_jax.data.sources.source import Dropped, Source
from aligner_jax.data.sources.values import text_field
from aligner_jax.errors import InputError

_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def parse(record: dict, where: str) -> Preference:
    r"""Parses the turns that both dialogues share, and the last turn of each. White space around a turn is removed.

    Raises:
      InputError: `chosen` or `rejected` is missing, not text, or does not begin with "\n\nHuman:".
      Dropped: human and assistant do not alternate in a dialogue, or it does not end with the assistant (a few records
        of the data); or the turns before the answers differ.
    """
    chosen, rejected = (_dialogue(text_field(record, name, where), name, where) for name in ("chosen", "rejected"))
    for turns in (chosen, rejected):
        if len(turns) % 2 or any(turn["role"] != ("user", "assistant")[i % 2] for i, turn in enumerate(turns)):
            raise Dropped("turns out of order")
    if chosen[:-1] != rejected[:-1]:
        raise Dropped("prompts differ")
    return Preference(prompt=tuple(chosen[:-1]), chosen=chosen[-1]["content"], rejected=rejected[-1]["content"])


def _dialogue(text: str, name: str, where: str) -> list[Message]:
    before, *parts = _TURN.split(text)
    if before or not parts or parts[0] != "Human":
        raise InputError(rf"{where}: the field {name!r} does not begin with '\n\nHuman:'")
    return [
        {"role": _ROLES[speaker], "content": said.strip()}
        for speaker, said in zip(parts[::2], parts[1::2], strict=True)
    ]


def _fits(record: dict) -> bool:
    return all(isinstance(text := record.get(name), str) and _TURN.match(text) for name in ("chosen", "rejected"))


HH_RLHF = Source(
    name="hh_rlhf",
    parse=parse,
    fits=_fits,
    record=Preference,
    uses=("chosen", "rejected"),
    about="Dialogues of people with an assistant, with the answer they preferred and the one they did not.",
    homepage="https://github.com/anthropics/hh-rlhf",
    licence="MIT",
    root="https://huggingface.co/datasets/Anthropic/hh-rlhf/resolve/main/",
    files={
        split: tuple(
            f"{part}/{split}.jsonl.gz"
            for part in ("harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled")
        )
        for split in ("train", "test")
    },
)

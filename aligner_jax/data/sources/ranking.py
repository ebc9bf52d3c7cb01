"""LLaMA-Factory's ranking records: conversations, or an instruction with its input, and two answers."""

from aligner_jax.data.sources import sharegpt
from aligner_jax.data.sources.example import Example, Instruction, Message, Preference
from aligner_jax.data.sources.messages import TURN
from aligner_jax.data.sources.source import Source
from aligner_jax.data.sources.values import text_field
from aligner_jax.errors import InputError

_ANSWERS = ("chosen", "rejected")


def parse(record: dict, where: str) -> Preference:
    """Parses a prompt and two answers.

    The prompt is a conversation, or an instruction with its input. Answers are strings, or turns in ShareGPT's format.

    Raises:
      InputError: a field is missing or of another type, the conversation does not end with the user's turn, or an
        answer is not the assistant's.
      Dropped: the record has tool calls or results.
    """
    if "conversations" in record:
        prompt = sharegpt.talk(record, where)
    else:
        texts = text_field(record, "instruction", where), text_field(record, "input", where, default="")
        prompt = Example(Instruction(*texts, ""), where).messages_before_answer()
    if not prompt or prompt[-1]["role"] != "user":
        raise InputError(f"{where}: the field 'conversations' does not end with a turn of a human")
    chosen, rejected = (_answer(record, name, where) for name in _ANSWERS)
    return Preference(tuple(prompt), chosen, rejected)


def _answer(record: dict, name: str, where: str) -> str:
    turn = record.get(name)
    if not isinstance(turn, dict):
        return text_field(record, name, where)
    message: Message = sharegpt.said_by(turn, f"{where}, the field {name!r}")
    if message["role"] != "assistant":
        raise InputError(f"{where}: the field {name!r} is not a turn of 'gpt'")
    return message["content"]


def _fits(record: dict) -> bool:
    if "prompt" in record or any(name not in record for name in _ANSWERS):
        return False
    kinds = dict if "conversations" in record else str
    asked = "conversations" in record or "instruction" in record
    return asked and all(isinstance(record[name], kinds) for name in _ANSWERS)


RANKING = Source(
    name="ranking",
    parse=parse,
    fits=_fits,
    record=Preference,
    uses=("conversations", "instruction", "input", *_ANSWERS),
    turn=("from", "value", *TURN),
    about="A conversation or an instruction and two answers: what LLaMA-Factory calls ranking data.",
)

"""TRL's preference records: prompt, chosen, rejected, each a text or a list of messages."""

from aligner_jax.data.sources.example import Message, Preference
from aligner_jax.data.sources.messages import TURN, turns
from aligner_jax.data.sources.source import Dropped, Source
from aligner_jax.data.sources.values import text_field
from aligner_jax.errors import InputError

NAMES = ("prompt", "chosen", "rejected")


def parse(record: dict, where: str, names: tuple[str, str, str] = NAMES) -> Preference:
    """Parses a prompt and two answers.

    A string is a user turn in the prompt field, and an assistant turn in the answer fields. A list of messages in an
    answer field continues the prompt; if it begins with a system or user turn, it is a whole chat that includes the
    prompt.

    Args:
      record: JSON object.
      where: "file:line" of the object, for error messages.
      names: names of the fields for prompt, chosen and rejected.

    Raises:
      InputError: a field is missing, or is neither text nor a list of objects with `role` and `content`; or the prompt
        does not end with the user's turn, or an answer is not the assistant's.
      Dropped: the turns before the two answers differ.
    """
    prompt, *answers = names
    before = _turns(record, prompt, "user", where)
    if not before or before[-1]["role"] == "assistant":
        raise InputError(f"{where}: the field {prompt!r} does not end with a turn that an assistant answers")
    chosen, rejected = (_chat(before, record, name, where) for name in answers)
    if chosen[:-1] != rejected[:-1]:
        raise Dropped("prompts differ")
    return Preference(prompt=tuple(chosen[:-1]), chosen=chosen[-1]["content"], rejected=rejected[-1]["content"])


def _chat(before: list[Message], record: dict, name: str, where: str) -> list[Message]:
    """Returns the prompt followed by one answer."""
    answer = _turns(record, name, "assistant", where)
    if not answer or answer[-1]["role"] != "assistant":
        raise InputError(f"{where}: the field {name!r} does not end with a turn of 'assistant'")
    if answer[0]["role"] == "assistant":
        return [*before, *answer]
    # A whole chat may have a system turn before the prompt.
    if not any(answer[i : i + len(before)] == before for i in range(2)):
        raise InputError(f"{where}: the field {name!r} is a whole chat, but does not begin with the prompt")
    return answer


def _turns(record: dict, name: str, role: str, where: str) -> list[Message]:
    if isinstance(record.get(name), list):
        return turns(record, name, where)
    return [{"role": role, "content": text_field(record, name, where)}]


def _fits(record: dict) -> bool:
    if any(name not in record for name in NAMES):
        return False
    prompt, chosen, rejected = (record[name] for name in NAMES)
    if isinstance(chosen, str):
        return isinstance(rejected, str)
    # Whole chats beside a string as prompt are UltraFeedback's.
    first = chosen[0] if isinstance(chosen, list) and chosen else None
    return isinstance(prompt, list) or (isinstance(first, dict) and first.get("role") == "assistant")


PREFERENCES = Source(
    name="preferences",
    parse=parse,
    fits=_fits,
    record=Preference,
    uses=NAMES,
    turn=TURN,
    ignores=("score_chosen", "score_rejected"),
    about="A prompt and two answers, as texts or as messages: what TRL calls preference data.",
)

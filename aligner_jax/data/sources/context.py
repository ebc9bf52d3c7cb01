"""System prompts and earlier turns (history), which are put before a record's question."""

from collections.abc import Sequence
from typing import TypeGuard

from aligner_jax.data.sources.example import Conversation, Example, Message, Preference, Record
from aligner_jax.data.sources.source import Dropped
from aligner_jax.data.sources.values import check_text


def with_context(parsed: Record, record: dict, where: str, system: Sequence[str], history: Sequence[str]) -> Record:
    """Returns the record with its system prompt and history put before it.

    The formats are LLaMA-Factory's: a system prompt is a string, and history is a list of [question, answer] pairs,
    the earliest first. An instruction with either becomes a conversation, and all its answers are targets.

    Args:
      parsed: result of the source's `parse`.
      record: JSON object that was parsed.
      where: "file:line" of the object, for error messages.
      system: names of the fields that may hold a system prompt; an empty string counts as none.
      history: names of the fields that may hold earlier turns; an empty list counts as none.

    Raises:
      InputError: a text contains half a surrogate pair.
      Dropped: there are two different system prompts.
    """
    prompts = {text for name in system if isinstance(text := record.get(name), str) and text.strip()}
    earlier = [pair for name in history if is_history(pairs := record.get(name)) for pair in pairs]
    if not prompts and not earlier:
        return parsed
    turns = _turns(parsed, where)
    if turns[0]["role"] == "system":
        prompts.add(turns.pop(0)["content"])
    if len(prompts) > 1:
        raise Dropped("two system prompts")
    before: list[Message] = [
        {"role": "system", "content": check_text(text, "the system prompt", where)} for text in prompts
    ]
    for pair in earlier:
        for role, text in zip(("user", "assistant"), pair, strict=True):
            before.append({"role": role, "content": check_text(text, "the history", where)})
    if isinstance(parsed, Preference):
        return Preference((*before, *turns), parsed.chosen, parsed.rejected)
    return Conversation((*before, *turns))


def is_history(value: object) -> TypeGuard[list[Sequence[str]]]:
    """Returns True if a value is a list of pairs of strings."""
    return isinstance(value, list) and all(
        isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(text, str) for text in pair)
        for pair in value
    )


def _turns(parsed: Record, where: str) -> list[Message]:
    """Returns the turns that follow the context: a preference's prompt, or all turns of another record."""
    if isinstance(parsed, Preference):
        return list(parsed.prompt)
    return list(parsed.messages) if isinstance(parsed, Conversation) else Example(parsed, where).messages()

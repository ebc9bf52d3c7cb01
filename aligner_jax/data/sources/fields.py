"""A source for files whose field names the config gives."""

import functools
from collections.abc import Mapping

from aligner_jax.data.sources import messages, preferences
from aligner_jax.data.sources.example import Conversation, Instruction, Preference, Record, Text
from aligner_jax.data.sources.formats import FormatError
from aligner_jax.data.sources.question_answer import ANSWERS, INPUTS, QUESTIONS
from aligner_jax.data.sources.source import Source
from aligner_jax.data.sources.values import text_field

NAME = "fields"
_MAPS = (
    "instruction and output (and input), prompt and chosen and rejected, messages, or text; all but text also with "
    "system and history"
)
_CONTEXT = frozenset({"system", "history"})


def fields_source(fields: Mapping[str, str]) -> Source:
    """Returns a source for files with the given field names.

    Args:
      fields: field names of the file by their meaning. The keys are `instruction` and `output`, optionally with
        `input`; or `prompt`, `chosen` and `rejected`; or `messages`; or `text`. All but `text` allow `system` and
        `history` too (see `context.with_context`). Other usual names of these meanings are understood, such as
        `question` and `answer`, see `question_answer.QUESTIONS` and `ANSWERS`.

    Raises:
      InputError: `fields` has other keys, or two keys of one meaning.
    """
    fields = _by_meaning(fields)
    keys = frozenset(fields) - _CONTEXT
    kinds = {
        frozenset({"instruction", "output"}): Instruction,
        frozenset({"instruction", "input", "output"}): Instruction,
        frozenset({"prompt", "chosen", "rejected"}): Preference,
        frozenset({"messages"}): Conversation,
        **({} if _CONTEXT & fields.keys() else {frozenset({"text"}): Text}),
    }
    if keys not in kinds:
        raise FormatError(f"data.fields has {', '.join(fields) or 'nothing'}, but should have {_MAPS}")
    return Source(
        name=NAME,
        parse=functools.partial(parse, fields=dict(fields)),
        fits=lambda record: False,
        record=kinds[keys],
        uses=tuple(name for meaning, name in fields.items() if meaning not in _CONTEXT),
        turn=("role", "content") if "messages" in fields or "prompt" in fields else (),
        system=tuple(name for meaning, name in fields.items() if meaning == "system"),
        history=tuple(name for meaning, name in fields.items() if meaning == "history"),
        about=f"Records with {', '.join(f'{meaning} under {name!r}' for meaning, name in fields.items())}.",
    )


def _by_meaning(fields: Mapping[str, str]) -> dict[str, str]:
    """Returns the field names with the meanings under their first names."""
    question = "prompt" if fields.keys() & {"chosen", "rejected"} else "instruction"
    first = {**dict.fromkeys(QUESTIONS, question), **dict.fromkeys(ANSWERS, "output"), **dict.fromkeys(INPUTS, "input")}
    known: dict[str, str] = {}
    for meaning, name in fields.items():
        meant = first.get(meaning, meaning)
        if meant in known:
            raise FormatError(f"data.fields has {' and '.join(fields)}, of which two mean {meant!r}; leave one out")
        known[meant] = name
    return known


def parse(record: dict, where: str, fields: Mapping[str, str]) -> Record:
    """Parses a record by the field names in `fields`, which error messages use too; `input` may be missing.

    Raises:
      InputError: a field is missing or not text; for `messages`, is not a list of objects with `role` and `content`;
        for preferences, see `preferences.parse`.
    """
    if "messages" in fields:
        return messages.parse(record, where, fields["messages"])
    if "text" in fields:
        return Text(text_field(record, fields["text"], where))
    if "prompt" in fields:
        return preferences.parse(record, where, (fields["prompt"], fields["chosen"], fields["rejected"]))
    return Instruction(
        instruction=text_field(record, fields["instruction"], where),
        input=text_field(record, fields["input"], where, default="") if "input" in fields else "",
        output=text_field(record, fields["output"], where),
    )

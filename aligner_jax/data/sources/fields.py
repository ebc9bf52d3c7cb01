"""A source for files whose field names the config gives."""

import functools
from collections.abc import Mapping

from aligner_jax.data.sources import messages, preferences
from aligner_jax.data.sources.example import Conversation, Instruction, Preference
from aligner_jax.data.sources.source import Record, Source
from aligner_jax.data.sources.values import text_field
from aligner_jax.errors import InputError

NAME = "fields"
_MAPS = "instruction and output (and input), prompt and chosen and rejected, or messages (and system and history)"
_CONTEXT = frozenset({"system", "history"})


def fields_source(fields: Mapping[str, str]) -> Source:
    """Returns a source for files with the given field names.

    Args:
      fields: field names of the file by their meaning. The keys are `instruction` and `output`, optionally with
        `input`; or `prompt`, `chosen` and `rejected`; or `messages`. All of them allow `system` and `history` too
        (see `context.with_context`).

    Raises:
      InputError: `fields` has other keys.
    """
    keys = frozenset(fields) - _CONTEXT
    kinds = {
        frozenset({"instruction", "output"}): Instruction,
        frozenset({"instruction", "input", "output"}): Instruction,
        frozenset({"prompt", "chosen", "rejected"}): Preference,
        frozenset({"messages"}): Conversation,
    }
    if keys not in kinds:
        raise InputError(f"data.fields has {', '.join(fields) or 'nothing'}, but should have {_MAPS}")
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


def parse(record: dict, where: str, fields: Mapping[str, str]) -> Record:
    """Parses a record by the field names in `fields`, which error messages use too; `input` may be missing.

    Raises:
      InputError: a field is missing or not text; for `messages`, is not a list of objects with `role` and `content`;
        for preferences, see `preferences.parse`.
    """
    if "messages" in fields:
        return messages.parse(record, where, fields["messages"])
    if "prompt" in fields:
        return preferences.parse(record, where, (fields["prompt"], fields["chosen"], fields["rejected"]))
    return Instruction(
        instruction=text_field(record, fields["instruction"], where),
        input=text_field(record, fields["input"], where, default="") if "input" in fields else "",
        output=text_field(record, fields["output"], where),
    )

"""Any file whose fields the config names."""

import functools
from collections.abc import Mapping

from aligner_jax.data.sources import messages
from aligner_jax.data.sources.example import Conversation, Instruction, Preference
from aligner_jax.data.sources.source import Record, Source
from aligner_jax.data.sources.values import text_field
from aligner_jax.errors import InputError

NAME = "fields"
_MAPS = "instruction and output (and input), prompt and chosen and rejected, or messages"


def fields_source(fields: Mapping[str, str]) -> Source:
    """The source of files whose records have the fields that `fields` gives by their meaning.

    Args:
      fields: the file's name of `instruction` and `output`, perhaps of `input`; or of `prompt`, `chosen` and
        `rejected`; or of `messages`.

    Raises:
      InputError: `fields` has other keys.
    """
    keys = frozenset(fields)
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
        about=f"Records with {', '.join(f'{meaning} under {name!r}' for meaning, name in fields.items())}.",
    )


def parse(record: dict, where: str, fields: Mapping[str, str]) -> Record:
    """A record by the file's own names of its fields, which errors use too; `input` may be missing.

    Raises:
      InputError: a field is missing, or is not text (`messages`: not a list of objects with `role` and `content`).
    """
    if "messages" in fields:
        return messages.parse(record, where, fields["messages"])
    if "prompt" in fields:
        prompt, chosen, rejected = (
            text_field(record, fields[name], where) for name in ("prompt", "chosen", "rejected")
        )
        return Preference(prompt=({"role": "user", "content": prompt},), chosen=chosen, rejected=rejected)
    return Instruction(
        instruction=text_field(record, fields["instruction"], where),
        input=text_field(record, fields["input"], where, default="") if "input" in fields else "",
        output=text_field(record, fields["output"], where),
    )

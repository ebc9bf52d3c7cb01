"""Lists the sources, and finds the one that a config names or that a record looks like."""

from collections.abc import Mapping

from aligner_jax.data.sources.alpaca import ALPACA, ALPACA_CLEANED
from aligner_jax.data.sources.beavertails import BEAVERTAILS
from aligner_jax.data.sources.dolly import DOLLY
from aligner_jax.data.sources.fields import NAME as FIELDS
from aligner_jax.data.sources.fields import fields_source
from aligner_jax.data.sources.formats import FormatError
from aligner_jax.data.sources.gsm8k import GSM8K
from aligner_jax.data.sources.hh_rlhf import HH_RLHF
from aligner_jax.data.sources.messages import MESSAGES
from aligner_jax.data.sources.metamath import METAMATH
from aligner_jax.data.sources.pku_saferlhf import PKU_SAFERLHF
from aligner_jax.data.sources.preferences import PREFERENCES
from aligner_jax.data.sources.prompt_completion import PROMPT_COMPLETION
from aligner_jax.data.sources.question_answer import QUESTION_ANSWER
from aligner_jax.data.sources.ranking import RANKING
from aligner_jax.data.sources.sharegpt import SHAREGPT
from aligner_jax.data.sources.source import Source
from aligner_jax.data.sources.text import TEXT
from aligner_jax.data.sources.ultrafeedback import ULTRAFEEDBACK
from aligner_jax.errors import InputError

_ALL = (
    ALPACA,
    MESSAGES,
    ALPACA_CLEANED,
    DOLLY,
    GSM8K,
    METAMATH,
    PKU_SAFERLHF,
    BEAVERTAILS,
    HH_RLHF,
    PREFERENCES,
    ULTRAFEEDBACK,
    RANKING,
    SHAREGPT,
    PROMPT_COMPLETION,
    QUESTION_ANSWER,
    TEXT,
)

SOURCES: dict[str, Source] = {source.name: source for source in _ALL}


def find_source(format: str, fields: Mapping[str, str] | None = None) -> Source:
    """Returns the source that `format` names.

    Raises:
      InputError: there is no such source, or `fields` is given without the format "fields" or has unknown keys.
    """
    if format == FIELDS:
        return fields_source(fields or {})
    if fields:
        raise InputError(f"data.fields is set, but data.format is {format!r} and not {FIELDS!r}")
    if format not in SOURCES:
        raise InputError(
            f"the data format {format!r} is unknown; there are auto, {', '.join(SOURCES)}, {FIELDS}: docs/data.md has "
            "an example of each"
        )
    return SOURCES[format]


def recognize(record: Mapping[str, object]) -> Source | None:
    """Returns the first source that a record looks like, or None."""
    return next((source for source in SOURCES.values() if source.fits(dict(record))), None)


def detect(record: Mapping[str, object], where: str) -> Source:
    """Returns the source that a record looks like.

    Raises:
      FormatError: it looks like none; the message names its fields.
    """
    if (source := recognize(record)) is not None:
        return source
    present = ", ".join(map(repr, record)) or "none"
    if "chosen" in record and "rejected" in record and "prompt" not in record:
        raise FormatError(
            f"{where}: the record has the two answers of a preference, but no field 'prompt'; its fields are {present}"
        )
    if len(record) == 1 and (mark := next((mark for mark in ";\t|" if mark in next(iter(record))), None)):
        raise FormatError(
            f"{where}: there is one field, {present}: it is divided by {mark!r}, but CSV is divided by commas, "
            "and TSV, whose name ends in .tsv, by tabs"
        )
    raise FormatError(
        f"{where}: the record's fields are {present}, which tell no format; rename them, or set data.format to "
        f"{FIELDS!r} and name them in data.fields"
    )

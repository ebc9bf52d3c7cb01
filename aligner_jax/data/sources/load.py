"""Loads the examples of a file, and counts dropped records and unused fields."""

import collections
import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path

from aligner_jax.data.sources import prepared
from aligner_jax.data.sources.alpaca import ALPACA, ALPACA_CLEANED
from aligner_jax.data.sources.beavertails import BEAVERTAILS
from aligner_jax.data.sources.context import with_context
from aligner_jax.data.sources.dolly import DOLLY
from aligner_jax.data.sources.example import Example
from aligner_jax.data.sources.fields import NAME as FIELDS
from aligner_jax.data.sources.fields import fields_source
from aligner_jax.data.sources.gsm8k import GSM8K
from aligner_jax.data.sources.hh_rlhf import HH_RLHF
from aligner_jax.data.sources.messages import MESSAGES
from aligner_jax.data.sources.metamath import METAMATH
from aligner_jax.data.sources.pku_saferlhf import PKU_SAFERLHF
from aligner_jax.data.sources.preferences import PREFERENCES
from aligner_jax.data.sources.prompt_completion import PROMPT_COMPLETION
from aligner_jax.data.sources.ranking import RANKING
from aligner_jax.data.sources.records import open_records
from aligner_jax.data.sources.sharegpt import SHAREGPT
from aligner_jax.data.sources.source import WANTED, Dropped, Source, check_worth
from aligner_jax.data.sources.ultrafeedback import ULTRAFEEDBACK
from aligner_jax.data.sources.unused import Unused, told
from aligner_jax.errors import InputError, one_line
from aligner_jax.files.config_files import find_packaged
from aligner_jax.files.content import is_folder

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
)

SOURCES: dict[str, Source] = {source.name: source for source in _ALL}


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Examples in the order of their file, with counts of dropped records and unused fields.

    Attributes:
      examples: examples with something to learn.
      dropped: number of dropped records, by reason.
      unused: number of records that have an unused field, by the field's name.
    """

    examples: list[Example]
    dropped: Mapping[str, int] = dataclasses.field(default_factory=dict)
    unused: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        """Returns a summary in one line."""
        return "; ".join(filter(None, (f"{len(self.examples):,} examples", _dropped(self.dropped), told(self.unused))))


def load_examples(path: Path | str, format: str = "auto", fields: Mapping[str, str] | None = None) -> list[Example]:
    """Loads examples as `load_dataset` does, and returns them without the counts."""
    return load_dataset(path, format, fields).examples


def load_dataset(path: Path | str, format: str = "auto", fields: Mapping[str, str] | None = None) -> Dataset:
    """Loads the examples of a file, or of a folder that a TFDS builder prepared.

    Records with an empty answer, pairs of equal answers, and records that the source refuses are dropped and counted.
    A record's system prompt and earlier turns are put before it; see `context.with_context`. Unused fields are counted.

    Args:
      path: file with a JSON array of objects, JSON lines, or Parquet, optionally compressed (see `read_records`); or
        folder with a dataset_info.json, whose split "train" is read; or FOLDER/SPLIT.
      format: one of `SOURCES`; "fields", together with `fields`; or "auto", which detects the source by the first
        record's fields.
      fields: for "fields", field names of the file by their meaning (see `fields_source`).

    Raises:
      InputError: the format is unknown, no example is left, the file cannot be read or is empty, or a record does not
        fit; the message names file and line.
    """
    source = None if format == "auto" and not fields else find_source(format, fields)
    path = find_packaged(path)
    if prepared.is_prepared(path):
        return _checked(path, Dataset(*prepared.read_prepared(path, source.name if source else None)))
    if is_folder(path):
        raise InputError(f"{path} is a folder, but none that a builder prepared: it has no {prepared.INFO}")
    return _checked(path, _load_file(path, source))


def load_source(paths: Iterable[Path | str], source: Source) -> Dataset:
    """Loads several files of one source and concatenates their examples.

    Raises:
      InputError: see `load_dataset`.
    """
    datasets = [_checked(path, _load_file(path, source)) for path in paths]
    dropped, unused = (
        sum((collections.Counter(each) for each in counts), collections.Counter[str]())
        for counts in ([dataset.dropped for dataset in datasets], [dataset.unused for dataset in datasets])
    )
    return Dataset([example for dataset in datasets for example in dataset.examples], dict(dropped), dict(unused))


def _load_file(path: Path | str, source: Source | None) -> Dataset:
    """Loads the examples of a file; source None detects the source by the first record's fields."""
    records = open_records(path, _columns(SOURCES.values() if source is None else [source]))
    examples: list[Example] = []
    dropped: collections.Counter[str] = collections.Counter()
    unused, context = None, ()
    for record, where in records.rows:
        if unused is None:
            source = source or _detect(record, where)
            unused, context = Unused(source, records.unread), (*source.system, *source.history)
        assert source is not None
        unused.add(record)
        try:
            if record.get(WANTED) is False:
                raise Dropped("unwanted answer")
            parsed = source.parse(record, where)
            if any(map(record.get, context)):
                parsed = with_context(parsed, record, where, source.system, source.history)
            check_worth(parsed)
        except Dropped as reason:
            dropped[str(reason)] += 1
        else:
            examples.append(Example(parsed, where))
    return Dataset(examples, dict(dropped), dict(unused.counts) if unused else {})


def _columns(sources: Iterable[Source]) -> set[str]:
    return {name for source in sources for name in (*source.uses, *source.system, *source.history, WANTED)}


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
        raise InputError(f"the data format {format!r} is unknown; there are auto, {', '.join(SOURCES)}, {FIELDS}")
    return SOURCES[format]


def _detect(record: dict, where: str) -> Source:
    for source in SOURCES.values():
        if source.fits(record):
            return source
    present = ", ".join(map(repr, record)) or "none"
    raise InputError(
        f"{where}: the record has no field 'instruction'; its fields are {present}, which tell no format; name one of "
        f"{', '.join(SOURCES)}, or {FIELDS!r} with data.fields"
    )


def _checked(path: Path | str, dataset: Dataset) -> Dataset:
    if not dataset.examples:
        raise InputError(f"{path} holds no example to learn from: {_dropped(dataset.dropped)}")
    return dataset


def _dropped(dropped: Mapping[str, int]) -> str:
    if not dropped:
        return ""
    reasons = ", ".join(f"{one_line(reason, 60)} ({count:,})" for reason, count in sorted(dropped.items()))
    return f"dropped {sum(dropped.values()):,}: {reasons}"

"""Loads the examples of a file, a folder or a hub data set, and counts dropped records and unused fields."""

import collections
import dataclasses
import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from aligner_jax.data.sources import prepared
from aligner_jax.data.sources.context import with_context
from aligner_jax.data.sources.example import Example
from aligner_jax.data.sources.formats import DamageError, FormatError
from aligner_jax.data.sources.place import open_place
from aligner_jax.data.sources.records import PARQUET, Records, open_records
from aligner_jax.data.sources.registry import SOURCES, detect, find_source, recognize
from aligner_jax.data.sources.source import WANTED, Dropped, Source, check_worth
from aligner_jax.data.sources.unused import Unused, told
from aligner_jax.data.sources.values import flag_field
from aligner_jax.errors import InputError, one_line
from aligner_jax.files.config_files import find_packaged


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Examples in the order of their file, with counts of dropped records and unused fields.

    Attributes:
      examples: examples with something to learn.
      dropped: number of dropped records, by reason.
      unused: number of records that have an unused field, by the field's name.
      format: name of the source that the records were read by.
      form: form of the files: "JSON", "CSV", "TSV", "text", "Parquet", "TFDS" or "hub".
    """

    examples: list[Example]
    dropped: Mapping[str, int] = dataclasses.field(default_factory=dict)
    unused: Mapping[str, int] = dataclasses.field(default_factory=dict)
    format: str = dataclasses.field(default="", compare=False)
    form: str = dataclasses.field(default="", compare=False)

    def __str__(self) -> str:
        """Returns a summary in one line."""
        count = "1 example" if len(self.examples) == 1 else f"{len(self.examples):,} examples"
        return "; ".join(filter(None, (count, _dropped(self.dropped), told(self.unused))))


def load_examples(path: Path | str, format: str = "auto", fields: Mapping[str, str] | None = None) -> list[Example]:
    """Loads examples as `load_dataset` does, and returns them without the counts."""
    return load_dataset(path, format, fields).examples


def load_dataset(path: Path | str, format: str = "auto", fields: Mapping[str, str] | None = None) -> Dataset:
    """Loads the examples of a file, a folder, or a data set of the Hugging Face hub.

    Records with an empty answer, pairs of equal answers, and records that the source refuses are dropped and counted.
    A record's system prompt and earlier turns are put before it; see `context.with_context`. Unused fields are counted.

    Args:
      path: a file of records (see `read_records`); a folder of such files, in the layout of the hub; a folder that a
        TFDS builder prepared, or FOLDER/SPLIT of one; or the name of a data set of the hub, see `place.open_place`. The
        split is "train" unless the path ends in ":SPLIT".
      format: one of `SOURCES`; "fields", together with `fields`; or "auto", which detects the source by the first
        record's fields.
      fields: for "fields", field names of the file by their meaning (see `fields_source`).

    Raises:
      InputError: the format is unknown, no example is left, the file cannot be read or is empty, or a record does not
        fit; the message names file and line.
    """
    source = None if format == "auto" and not fields else find_source(format, fields)
    path = _named(path)
    if prepared.is_prepared(path):
        read, name = prepared.read_prepared(path, source.name if source else None), prepared.source_name(path)
        return _checked(path, Dataset(*read, format=name, form="TFDS"))
    return _checked(path, _joined(_loaded(open_place(path, _columns(source)), source)))


def load_first(path: Path | str, format: str = "auto", fields: Mapping[str, str] | None = None) -> Dataset:
    """Loads what the first 100 records hold, of a folder those of its first file; checks a path before long work.

    Raises:
      InputError: see `load_dataset`; other records than the first are not read. No example is needed.
    """
    source = None if format == "auto" and not fields else find_source(format, fields)
    path = _named(path)
    if prepared.is_prepared(path):
        read = prepared.read_prepared(path, source.name if source else None, most=_FIRST)
        return Dataset(*read, format=prepared.source_name(path), form="TFDS")
    return next(_loaded(open_place(path, _columns(source)), source, most=_FIRST))


def _named(path: Path | str) -> Path:
    if not str(path).strip():
        raise InputError("the path of the data is empty: give a file, a folder, or the name of a data set on a hub")
    return find_packaged(path)


def load_source(paths: Iterable[Path | str], source: Source) -> Dataset:
    """Loads several files of one source and concatenates their examples.

    Raises:
      InputError: see `load_dataset`.
    """
    columns = _columns(source)
    return _joined(_checked(path, _load(open_records(path, columns), source)[0]) for path in paths)


_FIRST = 100


def _loaded(opened: Iterable[Records], source: Source | None, most: int | None = None) -> Iterator[Dataset]:
    """Yields the examples of every file, at most the first `most`; the first record of all tells the source."""
    is_given = source is not None
    for records in opened:
        dataset, source = _load(records, source, most, is_given=is_given)
        yield dataset


def _joined(datasets: Iterable[Dataset]) -> Dataset:
    examples: list[Example] = []
    dropped, unused = collections.Counter[str](), collections.Counter[str]()
    dataset = None
    for dataset in datasets:
        examples += dataset.examples
        dropped.update(dataset.dropped)
        unused.update(dataset.unused)
    assert dataset is not None
    return dataclasses.replace(dataset, examples=examples, dropped=dict(dropped), unused=dict(unused))


def _load(
    records: Records, source: Source | None, most: int | None = None, *, is_given: bool = True
) -> tuple[Dataset, Source]:
    """Returns the examples and their source.

    Args:
      source: None detects it by the first record's fields.
      is_given: False if the source is that of an earlier file and not the user's choice.
    """
    examples: list[Example] = []
    dropped: collections.Counter[str] = collections.Counter()
    unused, context = None, ()
    for number, (record, where) in enumerate(itertools.islice(_rows(records), most)):
        if unused is None:
            source = source or detect(record, where)
            unused, context = Unused(source, records.unread), (*source.system, *source.history)
        assert source is not None
        unused.add(record)
        try:
            if _is_unwanted(record, where):
                raise Dropped("unwanted answer")
            parsed = source.parse(record, where)
            if any(map(record.get, context)):
                parsed = with_context(parsed, record, where, source.system, source.history)
            check_worth(parsed)
        except Dropped as reason:
            dropped[str(reason)] += 1
        except InputError as error:
            raise FormatError(f"{error}{'' if number else _other_format(record, source, is_given)}") from None
        else:
            examples.append(Example(parsed, where))
    assert source is not None
    assert unused is not None
    return Dataset(examples, dict(dropped), dict(unused.counts), source.name, records.form), source


def _rows(records: Records) -> Iterator[tuple[dict, str]]:
    """Yields the rows; an error about a text that is not of its form ends with the list of what is read."""
    try:
        yield from records.rows
    except DamageError:
        raise
    except InputError as error:
        raise (error if records.form == PARQUET else FormatError(error)) from None


def _is_unwanted(record: dict, where: str) -> bool:
    wanted = record.get(WANTED)
    # In CSV it is a text, and "False" would count as true.
    return wanted is False or (isinstance(wanted, str) and not flag_field(record, WANTED, where))


def _other_format(record: dict, source: Source, is_given: bool) -> str:
    """Returns a clause on the format that a record looks like, if that is another one than `source`; else ""."""
    seen = recognize(record)
    if seen is None or seen is source:
        return ""
    if is_given:
        return f"; this is the format {seen.name!r}: set data.format to 'auto'"
    return f"; this is the format {seen.name!r}, and the file before it {source.name!r}: name one of the two files"


def _columns(source: Source | None) -> Collection[str]:
    sources = SOURCES.values() if source is None else [source]
    return {name for each in sources for name in (*each.uses, *each.system, *each.history, WANTED)}


def _checked(path: Path | str, dataset: Dataset) -> Dataset:
    if not dataset.examples:
        raise InputError(f"{path} holds no example to learn from: {_dropped(dataset.dropped)}")
    return dataset


def _dropped(dropped: Mapping[str, int]) -> str:
    if not dropped:
        return ""
    reasons = ", ".join(f"{one_line(reason, 60)} ({count:,})" for reason, count in sorted(dropped.items()))
    return f"dropped {sum(dropped.values()):,}: {reasons}"

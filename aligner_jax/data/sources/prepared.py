"""Converts examples to and from TFDS features, and reads prepared folders through Grain."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import grain

from aligner_jax.data.sources.example import Conversation, Example, Instruction, Message, Preference, Record, Text
from aligner_jax.errors import InputError
from aligner_jax.files.content import is_file
from aligner_jax.files.extras import pip_line
from aligner_jax.files.fields import Fields, read_fields
from aligner_jax.files.json_text import read_json, read_object

INFO, METADATA, FEATURES = "dataset_info.json", "metadata.json", "features.json"
_CLASSES = "tensorflow_datasets.core.features."


def is_prepared(path: Path | str) -> bool:
    """Returns True if the path is a folder that a TFDS builder prepared, or FOLDER/SPLIT."""
    return _place(Path(path)) is not None


class Prepared(NamedTuple):
    """Examples, with counts of dropped records by reason and of unused fields by name; see `load.Dataset`."""

    examples: list[Example]
    dropped: dict[str, int]
    unused: dict[str, int]


def read_prepared(path: Path | str, name: str | None = None, *, most: int | None = None) -> Prepared:
    """Returns the examples of a prepared split, with the counts from its preparation.

    Args:
      path: prepared folder, whose split "train" is read, or FOLDER/SPLIT.
      name: expected name of the source; None accepts any.
      most: maximum number of examples to read; None reads all.

    Raises:
      InputError: see `prepared_examples`; or the folder holds another source, or an example cannot be read.
    """
    folder, split = _found(path)
    metadata = _metadata(folder)
    if name is not None and (held := metadata.text("source")) != name:
        raise InputError(f"{folder} holds the source {held!r}, not {name!r}")
    examples = prepared_examples(path)
    read = []
    for number in range(len(examples))[:most]:
        try:
            read.append(examples[number])
        except Exception as error:  # The readers raise many types for damaged files.
            raise InputError(
                f"{folder}: example {number + 1} of the split {split!r} cannot be read: {first_line(error)}"
            ) from error
    return Prepared(read, _counts(metadata, "dropped", split), _counts(metadata, "unused", split))


def source_name(path: Path | str) -> str:
    """Returns the name of the source of a prepared folder. Raises InputError if its metadata cannot be read."""
    return _metadata(_found(path)[0]).text("source")


def prepared_examples(path: Path | str) -> "grain.MapDataset[Example]":
    """Returns the examples of a prepared split, which are read on access.

    Raises:
      InputError: the folder is damaged, was written by another program, or has no such split.
    """
    tfds = import_tfds()
    folder, split = _found(path)
    _metadata(folder)
    _check_classes(read_json(folder / FEATURES), folder / FEATURES)
    read_object(folder / INFO)
    try:
        builder = tfds.builder_from_directory(str(folder))
        splits = list(builder.info.splits)
        source: Any = builder.as_data_source(split) if split in splits else None
    except Exception as error:  # The readers raise many types for damaged files.
        raise InputError(f"{folder} cannot be read: {first_line(error)}") from error
    if source is None:
        raise InputError(f"{folder} has no split {split!r}; there are {', '.join(splits)}")
    return grain.MapDataset.source(source).map(from_features)


def import_tfds() -> Any:
    """Imports TensorFlow Datasets. Called only on use, because the import takes a second and most runs do without.

    Raises:
      InputError: TensorFlow Datasets, or a package that it needs, is not installed.
    """
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise InputError(_needs(first_line(error))) from error
    # If a package that it needs is missing, its import only logs that, and the module is empty.
    if not hasattr(tensorflow_datasets, "core"):
        raise InputError(_needs("one that it needs is missing"))
    return tensorflow_datasets


def _needs(reason: str) -> str:
    return f"prepared data need the package tensorflow-datasets ({reason}); {pip_line('tfds')}"


def to_features(example: Example) -> dict[str, Any]:
    """Returns an example as features: the fields of its record, and its "file:line"."""
    record = example.record
    if isinstance(record, Instruction):
        fields = {"instruction": record.instruction, "input": record.input, "output": record.output}
    elif isinstance(record, Conversation):
        fields = {"messages": _stored(record.messages)}
    elif isinstance(record, Text):
        fields = {"text": record.text}
    else:
        fields = {"prompt": _stored(record.prompt), "chosen": record.chosen, "rejected": record.rejected}
    return {**fields, "where": example.where}


def from_features(stored: Mapping[str, Any]) -> Example:
    """Returns the example of stored features; the inverse of `to_features`."""
    if "messages" in stored and ("instruction" not in stored or len(stored["messages"]["role"])):
        record: Record = Conversation(_messages(stored["messages"]))
    elif "text" in stored:
        record = Text(_text(stored["text"]))
    elif "prompt" in stored:
        record = Preference(_messages(stored["prompt"]), _text(stored["chosen"]), _text(stored["rejected"]))
    else:
        record = Instruction(*(_text(stored[name]) for name in ("instruction", "input", "output")))
    return Example(record, _text(stored["where"]))


def _stored(messages: Iterable[Message]) -> list[dict[str, Any]]:
    return [{"learned": True, **message} for message in messages]


def _messages(stored: Mapping[str, Any]) -> tuple[Message, ...]:
    # Folders prepared by earlier versions lack `learned`.
    learned = stored.get("learned", [True] * len(stored["role"]))
    turns: list[Message] = []
    for role, content, is_learned in zip(stored["role"], stored["content"], learned, strict=True):
        turns.append({"role": _text(role), "content": _text(content)})
        if not is_learned:
            turns[-1]["learned"] = False
    return tuple(turns)


def _text(stored: bytes | str) -> str:
    return stored.decode() if isinstance(stored, bytes) else str(stored)


def _place(path: Path) -> tuple[Path, str] | None:
    if is_file(path):
        return None
    for folder, split in ((path, "train"), (path.parent, path.name)):
        if is_file(folder / INFO):
            return folder, split
    return None


def _found(path: Path | str) -> tuple[Path, str]:
    place = _place(Path(path))
    if place is None:
        raise InputError(f"{path} is no prepared folder: it has no {INFO}")
    return place


def _metadata(folder: Path) -> Fields:
    metadata = read_fields(folder / METADATA)
    metadata.text("source")
    return metadata


def _counts(metadata: Fields, name: str, split: str) -> dict[str, int]:
    """Returns record counts; folders prepared by earlier versions may lack them."""
    section = metadata.section(name)
    counts = section.section(split) if section is not None else None
    return {} if counts is None else {reason: counts.integer(reason, least=0) for reason in counts.values}


def _check_classes(features: object, path: Path) -> None:
    """Refuses feature classes from outside TFDS, because TFDS imports any class that the file names."""
    parts = features.values() if isinstance(features, dict) else features if isinstance(features, list) else ()
    if isinstance(features, dict):
        # Older versions of TFDS write "type".
        for key in ("pythonClassName", "python_class_name", "type"):
            name = features.get(key, _CLASSES)
            if isinstance(name, str) and not name.startswith(_CLASSES):
                raise InputError(f"{path} names the class {name!r}, and examples have features of {_CLASSES[:-1]} only")
    for part in parts:
        _check_classes(part, path)


def first_line(error: BaseException) -> str:
    """Returns an error's message on one line, at most 300 characters; the type's name if there is no message."""
    return " ".join(str(error).split())[:300] or type(error).__name__

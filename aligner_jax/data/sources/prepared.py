"""Examples as TFDS keeps them: what is stored of each, and how Grain reads it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grain

from aligner_jax.data.sources.example import Conversation, Example, Instruction, Message, Preference
from aligner_jax.data.sources.source import Record
from aligner_jax.errors import InputError

INFO, METADATA = "dataset_info.json", "metadata.json"


def is_prepared(path: Path | str) -> bool:
    """Whether the path is a folder that a builder prepared, or FOLDER/SPLIT."""
    return _place(Path(path)) is not None


def read_prepared(path: Path | str, name: str | None = None) -> tuple[list[Example], dict[str, int]]:
    """The examples of a prepared split, and how many records were dropped for which reason when it was prepared.

    Args:
      path: the folder (its split "train") or FOLDER/SPLIT.
      name: of the source that should have been prepared; None takes any.

    Raises:
      InputError: as `prepared_examples`, or the folder holds another source.
    """
    folder, split = _found(path)
    metadata = _metadata(folder)
    if name is not None and metadata["source"] != name:
        raise InputError(f"{folder} holds the source {metadata['source']!r}, not {name!r}")
    examples = prepared_examples(path)
    read = []
    for number in range(len(examples)):
        try:
            read.append(examples[number])
        except Exception as error:  # Whatever the readers raise for damaged files.
            raise InputError(
                f"{folder}: example {number + 1} of the split {split!r} cannot be read: {first_line(error)}"
            ) from error
    return read, metadata["dropped"].get(split, {})


def prepared_examples(path: Path | str) -> "grain.MapDataset[Example]":
    """The examples of a prepared split, read when they are asked for.

    Raises:
      InputError: the folder is damaged or of another program, or has no such split.
    """
    tfds = import_tfds()
    folder, split = _found(path)
    _metadata(folder)
    try:
        builder = tfds.builder_from_directory(str(folder))
        splits = list(builder.info.splits)
        source: Any = builder.as_data_source(split) if split in splits else None
    except Exception as error:  # Whatever the readers raise for damaged files.
        raise InputError(f"{folder} cannot be read: {first_line(error)}") from error
    if source is None:
        raise InputError(f"{folder} has no split {split!r}; there are {', '.join(splits)}")
    return grain.MapDataset.source(source).map(from_features)


def import_tfds() -> Any:
    """TensorFlow Datasets, which is imported where it is used only: it takes a second, and most runs need it not.

    Raises:
      InputError: it is not installed.
    """
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise InputError(_needs(first_line(error))) from error
    # Where a package that it needs is missing, its import logs that, and succeeds with nothing inside.
    if not hasattr(tensorflow_datasets, "core"):
        raise InputError(_needs("one that it needs is missing"))
    return tensorflow_datasets


def _needs(reason: str) -> str:
    return f"prepared data need the package tensorflow-datasets ({reason}); pip install 'aligner_jax[tfds]'"


def to_features(example: Example) -> dict[str, Any]:
    """What is stored of an example: its record's fields, and where it came from."""
    record = example.record
    if isinstance(record, Instruction):
        fields = {"instruction": record.instruction, "input": record.input, "output": record.output}
    elif isinstance(record, Conversation):
        fields = {"messages": list(record.messages)}
    else:
        fields = {"prompt": list(record.prompt), "chosen": record.chosen, "rejected": record.rejected}
    return {**fields, "where": example.where}


def from_features(stored: Mapping[str, Any]) -> Example:
    """The example again."""
    if "messages" in stored:
        record: Record = Conversation(_messages(stored["messages"]))
    elif "prompt" in stored:
        record = Preference(_messages(stored["prompt"]), _text(stored["chosen"]), _text(stored["rejected"]))
    else:
        record = Instruction(*(_text(stored[name]) for name in ("instruction", "input", "output")))
    return Example(record, _text(stored["where"]))


def _messages(stored: Mapping[str, Any]) -> tuple[Message, ...]:
    turns = zip(stored["role"], stored["content"], strict=True)
    return tuple({"role": _text(role), "content": _text(content)} for role, content in turns)


def _text(stored: bytes | str) -> str:
    return stored.decode() if isinstance(stored, bytes) else str(stored)


def _place(path: Path) -> tuple[Path, str] | None:
    if path.is_file():
        return None
    for folder, split in ((path, "train"), (path.parent, path.name)):
        if (folder / INFO).is_file():
            return folder, split
    return None


def _found(path: Path | str) -> tuple[Path, str]:
    place = _place(Path(path))
    if place is None:
        raise InputError(f"{path} is no prepared folder: it has no {INFO}")
    return place


def _metadata(folder: Path) -> dict[str, Any]:
    path = folder / METADATA
    try:
        metadata = json.loads(path.read_bytes())
        return {"source": str(metadata["source"]), "dropped": dict(metadata["dropped"])}
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged or of another program ({type(error).__name__})") from None


def first_line(error: BaseException) -> str:
    """What an error says, on one line and not without end."""
    return " ".join(str(error).split())[:300] or type(error).__name__

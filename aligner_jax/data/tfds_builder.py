"""Makes a TFDS builder of any source; it writes array_record files that Grain reads.

from aligner_jax.data.tfds_builder import prepare

folder = prepare("gsm8k", "data", raw={"train": "train.jsonl", "test": "test.jsonl"})    # for config.data.path
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aligner_jax.data.sources import Conversation, Example, Instruction, Preference, Source, Text, find_source
from aligner_jax.data.sources.load import load_source
from aligner_jax.data.sources.prepared import first_line, import_tfds, to_features
from aligner_jax.errors import InputError

type Raw = Path | str | Mapping[str, Path | str]
"""The file of the split "train", or the files of several splits."""

VERSION = "1.0.0"


def prepare(
    source: str, data_dir: Path | str, *, raw: Raw | None = None, fields: Mapping[str, str] | None = None
) -> Path:
    """Writes a source's examples as array_record files, and returns their folder: DATA_DIR/SOURCE/VERSION.

    The folder appears when it is complete. Its metadata.json counts the dropped records. Without `raw` an existing
    folder is returned unchanged.

    Args are those of `make_builder`.

    Raises:
      InputError: see `make_builder` and `load_dataset`; or `raw` is given and the folder exists; or it cannot be
        written.
    """
    folder = Path(data_dir).expanduser() / source / VERSION
    if folder.exists():
        if raw is None:
            return folder
        raise InputError(f"{folder} is prepared already: remove it, or choose another folder")
    builder = make_builder(source, data_dir, raw=raw, fields=fields)
    try:
        builder.download_and_prepare(file_format="array_record")
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {first_line(error)}") from error
    return folder


def make_builder(
    source: str, data_dir: Path | str, *, raw: Raw | None = None, fields: Mapping[str, str] | None = None
) -> Any:
    """Returns the `tfds.core.GeneratorBasedBuilder` of a source.

    It stores parsed examples in the order of the files: an instruction, a conversation or a pair, with the file and
    line that it came from.

    Args:
      source: one of `SOURCES`, or "fields".
      data_dir: data folder of TFDS.
      raw: files to read. None takes the source's files from TFDS's manual folder, and if they are not there downloads
        the published ones.
      fields: see `load_dataset`.

    Raises:
      InputError: there is no such source, or tensorflow-datasets is not installed.
    """
    if source == "auto":
        raise InputError("a builder needs the name of a source, and 'auto' is none")
    described = find_source(source, fields)
    files = {"train": raw} if isinstance(raw, str | Path) else raw
    return _builder_class()(described, files, data_dir)


@functools.cache
def _builder_class() -> type:
    tfds = import_tfds()

    # The base class is imported here, so the type checker does not know the arguments of its subclasses.
    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # pyright: ignore[reportGeneralTypeIssues, reportCallIssue]
        VERSION = tfds.core.Version(VERSION)
        # TFDS lets only builders with instructions use the manual folder.
        MANUAL_DOWNLOAD_INSTRUCTIONS = "The published files, if they should not be downloaded."

        def __init__(self, source: Source, raw: Mapping[str, Path | str] | None, data_dir: Path | str) -> None:
            self.name, self._source, self._raw = source.name, source, raw
            super().__init__(data_dir=data_dir)

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(
                builder=self,
                description=self._source.about,
                homepage=self._source.homepage,
                license=self._source.licence,
                features=tfds.features.FeaturesDict(_features(tfds, self._source)),
                # Examples keep the order of the file, as they do without TFDS.
                disable_shuffling=True,
                metadata=tfds.core.MetadataDict(source=self.name, dropped={}),
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
            # All files are read before anything is written, so that a bad record leaves nothing behind.
            splits = {
                split: load_source(paths, self._source)
                for split, paths in _files(self._source, self._raw, dl_manager).items()
            }
            for name in ("dropped", "unused"):
                counts = {split: dict(getattr(dataset, name)) for split, dataset in splits.items()}
                self.info.metadata[name] = counts
            return {split: self._generate_examples(dataset.examples) for split, dataset in splits.items()}

        def _generate_examples(self, examples: Sequence[Example]) -> Iterator[tuple[int, dict[str, Any]]]:
            # Instructions with a system prompt or a history are stored as conversations.
            either = {"instruction": "", "input": "", "output": "", "messages": []}
            absent = either if self._source.record is Instruction else {}
            for number, example in enumerate(examples):
                yield number, {**absent, **to_features(example)}

    return Builder


def _features(tfds: Any, source: Source) -> dict[str, Any]:
    text = tfds.features.Text
    turns = tfds.features.Sequence({"role": text(), "content": text(), "learned": tfds.features.Scalar(np.bool_)})
    kinds = {
        Instruction: {"instruction": text(), "input": text(), "output": text(), "messages": turns},
        Conversation: {"messages": turns},
        Preference: {"prompt": turns, "chosen": text(), "rejected": text()},
        Text: {"text": text()},
    }
    return {**kinds[source.record], "where": text()}


def _files(source: Source, raw: Mapping[str, Path | str] | None, dl_manager: Any) -> dict[str, list[Path]]:
    """Returns the files of each split."""
    if raw is not None:
        return {split: [Path(path)] for split, path in raw.items()}
    if not source.files:
        raise InputError(f"the source {source.name!r} has no published files: say with raw=… which file to prepare")
    manual = _manual_dir(dl_manager)
    if manual is not None:
        local = {split: [manual / name for name in names] for split, names in source.files.items()}
        found = {split: paths for split, paths in local.items() if all(path.is_file() for path in paths)}
        if found:
            return found
    urls = {split: [source.root + name for name in names] for split, names in source.files.items()}
    try:
        return {split: [Path(path) for path in paths] for split, paths in dl_manager.download(urls).items()}
    except Exception as error:  # The downloader raises whatever its HTTP library does.
        raise InputError(
            f"{source.root} cannot be downloaded ({type(error).__name__}: {first_line(error)}); fetch its files "
            "yourself and say with raw=… where they are"
        ) from error


def _manual_dir(dl_manager: Any) -> Path | None:
    try:
        return Path(dl_manager.manual_dir)
    except AssertionError:  # TFDS raises it if the folder does not exist.
        return None

"""Opens the data that a path names: a file, the files of a folder, or a data set of the Hugging Face hub."""

from collections.abc import Collection, Iterator
from pathlib import Path

from aligner_jax.data.sources import hub
from aligner_jax.data.sources.folder import files_of
from aligner_jax.data.sources.records import Records, form_of_name, open_records
from aligner_jax.data.sources.registry import SOURCES
from aligner_jax.errors import InputError
from aligner_jax.files.content import exists, is_folder


def open_place(path: Path | str, columns: Collection[str]) -> Iterator[Records]:
    """Yields the records of every file that a path names, each opened once the one before it is read.

    Args:
      path: a file; a folder of files, see `folder.files_of`; or the name of a data set of the hub. Folders and names
        may end in ":SPLIT", names also in ":CONFIG/SPLIT".
      columns: names of the columns to read of Parquet files and of data sets of the hub.

    Raises:
      InputError: there is nothing at the path, or it cannot be read; also see `files_of` and `open_hub`.
    """
    text, split = str(path), None
    if not exists(text) and ":" in text:
        before, _, after = text.rpartition(":")
        if after and is_folder(before):
            text, split = before, after
    if is_folder(text):
        yield from (open_records(file, columns) for file in files_of(Path(text), split))
        return
    name = hub.parse_name(text)
    if not exists(text) and name is not None and form_of_name(Path(text)) is None:
        yield hub.open_hub(name, columns)
        return
    if not exists(text):
        raise InputError(f"there is no file {text}{_published(Path(text))}")
    yield open_records(text, columns)


def _published(path: Path) -> str:
    """Returns a clause on where a missing file is published, if its name is that of a known data set."""
    for source in SOURCES.values():
        for name in (name for names in source.files.values() for name in names):
            same = Path(name).name == path.name
            if same and (path.stem.lower() not in ("train", "test") or source.name in path.parts):
                return f"; it is published at {source.root}{name} (docs/data.md says where to get others)"
    return ""

"""Finds the files of a split in a folder of data files, in the layout of the Hugging Face hub or a simpler one."""

import os
import re
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from aligner_jax.data.sources.formats import FormatError
from aligner_jax.data.sources.records import form_of_name
from aligner_jax.errors import InputError

TRAIN = "train"
_WORDS = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
}
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})(?:-[0-9a-f]+)?")
_NO_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "metadata.json"}
_DEPTH, _MAX_FILES = 4, 20_000


class _File(NamedTuple):
    """A data file.

    Attributes:
      name: its path inside the folder.
      split: split that its name tells, or None.
      group: folder of the files that belong together, without one that is named after the split.
    """

    name: PurePosixPath
    split: str | None
    group: PurePosixPath
    form: str


def files_of(folder: Path, split: str | None = None) -> list[Path]:
    """Returns the files of one split, in the order of their names.

    A file's name tells its split: "train-00000-of-00002.parquet", in which all before the numbers is the split; or a
    name, or else a folder, with one of the words train, test, validation and their usual variants. Without such names
    all files are of the split "train". Subfolders are searched.

    Args:
      split: "train" if None.

    Raises:
      InputError: there is no file of that split; its files are in several folders or of several forms; or a shard is
        missing.
    """
    wanted = _WORDS.get(split or TRAIN, split)
    found = [file for file in map(_described, _names(folder)) if file is not None]
    if not found:
        raise FormatError(f"{folder} holds no file of examples{_of_datasets(folder)}")
    splits = sorted({file.split for file in found if file.split is not None}) or [TRAIN]
    if wanted not in splits:
        raise InputError(
            f"{folder} has no files of the split {wanted!r}; there are {', '.join(splits[:10])}: write "
            f"{folder}:{splits[0]} for one of them"
        )
    files = [file for file in found if file.split == wanted or (splits == [TRAIN] and file.split is None)]
    if any(file.split is not None for file in files):
        files = [file for file in files if file.split is not None]
    if len({file.group for file in files}) > 1:
        parents = sorted({file.name.parent.as_posix() for file in files})
        raise InputError(
            f"{folder} has files of the split {wanted!r} in several folders ({', '.join(parents[:6])}): name one of "
            f"them, such as {folder / parents[-1]}"
        )
    forms = sorted({file.name.suffix for file in files})
    if len({file.form for file in files}) > 1:
        raise InputError(
            f"{folder} has files of the split {wanted!r} in several forms ({', '.join(forms)}), which may hold the "
            "same examples: name the file to read"
        )
    _check_shards(folder, files)
    return [folder / file.name for file in sorted(files)]


def _names(folder: Path) -> list[PurePosixPath]:
    """Returns the files' paths inside `folder`, without hidden ones and without following links to folders."""
    found: list[PurePosixPath] = []
    waiting, count = [(folder, 0)], 0
    while waiting:
        inside, depth = waiting.pop()
        try:
            with os.scandir(inside) as entries:
                for entry in entries:
                    count += 1
                    if count > _MAX_FILES:
                        raise InputError(
                            f"{folder} holds more than {_MAX_FILES:,} files, too many for a folder of data"
                        )
                    if entry.name.startswith("."):
                        continue
                    if not entry.is_dir(follow_symlinks=False):
                        found.append(PurePosixPath((inside / entry.name).relative_to(folder).as_posix()))
                    elif depth < _DEPTH:
                        waiting.append((inside / entry.name, depth + 1))
        except OSError as error:
            raise InputError(f"{inside} cannot be read: {error.strerror or error}") from None
    return found


def _described(name: PurePosixPath) -> _File | None:
    """Returns a data file; None for other files."""
    form = form_of_name(Path(name))
    if form is None or name.name in _NO_DATA or name.name.lower() in ("readme.txt", "license.txt"):
        return None
    stem = name.name.partition(".")[0]
    if (shard := _SHARD.fullmatch(stem)) is not None:
        return _File(name, _WORDS.get(shard[1], shard[1]), name.parent, form)
    if (split := _split_of(name.name)) is not None:
        return _File(name, split, name.parent, form)
    for at in reversed(range(len(name.parts) - 1)):
        if (split := _split_of(name.parts[at])) is not None:
            rest = (*name.parts[:at], *name.parts[at + 1 : -1])
            return _File(name, split, PurePosixPath(*rest), form)
    return _File(name, None, name.parent, form)


def _split_of(text: str) -> str | None:
    return next((_WORDS[word] for word in re.findall(r"[a-z]+", text.lower()) if word in _WORDS), None)


def _check_shards(folder: Path, files: list[_File]) -> None:
    present = {}
    for file in files:
        if (shard := _SHARD.fullmatch(file.name.name.partition(".")[0])) is not None:
            present.setdefault((shard[1], int(shard[3])), set()).add(int(shard[2]))
    for (name, total), numbers in present.items():
        first = 1 if total in numbers and 0 not in numbers else 0
        missing = [i for i in range(first, first + total) if i not in numbers]
        if missing:
            raise InputError(
                f"{folder} lacks {len(missing)} of the {total} files of {name!r}, the first of them "
                f"{name}-{missing[0]:05}-of-{total:05}"
            )


def _of_datasets(folder: Path) -> str:
    """Returns a clause on folders that `datasets.save_to_disk` wrote."""
    if any((folder / name).exists() for name in ("dataset_dict.json", "state.json")):
        return ', but what the method save_to_disk of the package datasets writes: write it with to_parquet("FILE")'
    return ""

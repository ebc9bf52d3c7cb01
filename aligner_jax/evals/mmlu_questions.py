"""MMLU's questions as published: a CSV without a header for each subject, in a zip or in a folder."""

import csv
import io
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from aligner_jax.errors import InputError
from aligner_jax.runtime.files import reason

Split = Literal["dev", "val", "test"]
# What is damaged, cut short, encrypted or packed in an unknown way.
_ZIP_ERRORS = (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


class MultipleChoice(NamedTuple):
    """A question with four choices, of which number `answer`, from 0, is right; `where` is its file and line."""

    subject: str
    question: str
    choices: tuple[str, ...]
    answer: int
    where: str


def read_mmlu(path: str, split: Split) -> dict[str, list[MultipleChoice]]:
    """The questions of a split by subject ("abstract_algebra"), in the order of the subjects' names.

    Args:
      path: the zip, or the folder of the folders dev, val and test (or the folder above it, called data).

    Raises:
      InputError: there is no such file, or a row is not question, four choices and a letter; names file and line.
    """
    subjects: dict[str, list[MultipleChoice]] = {}
    for name, text in sorted(_files(Path(path), split)):
        subject = Path(name).stem.removesuffix(f"_{split}")
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        questions = subjects.setdefault(subject, [])
        try:
            for row in reader:
                questions.append(_question(row, subject, f"{name}:{reader.line_num}"))
        except csv.Error as error:
            raise InputError(f"{name}:{reader.line_num} is not CSV: {error}") from None
        if not questions:
            raise InputError(f"{name} is empty")
    if not subjects:
        raise InputError(f"{path} has no {split}/SUBJECT_{split}.csv, as MMLU's data have them")
    return subjects


def _question(row: list[str], subject: str, where: str) -> MultipleChoice:
    if len(row) != 6 or row[5].strip() not in ("A", "B", "C", "D"):
        raise InputError(f"{where} is not a question, four choices and a letter of A to D, but {len(row)} fields")
    return MultipleChoice(subject, row[0], tuple(row[1:5]), "ABCD".index(row[5].strip()), where)


def _files(path: Path, split: str) -> Iterator[tuple[str, str]]:
    """Names, as they can stand in a sentence, and texts of a split's files."""
    if path.is_dir():
        folder = next((f for f in (path / split, path / "data" / split) if f.is_dir()), path)
        contents = ((str(file), file.read_bytes) for file in folder.glob(f"*_{split}.csv"))
    elif zipfile.is_zipfile(path):
        try:
            archive = zipfile.ZipFile(path)
        except _ZIP_ERRORS as error:
            raise InputError(f"{path} cannot be read: {reason(error)}") from error
        found = [name for name in archive.namelist() if f"/{split}/" in f"/{name}" and name.endswith(f"_{split}.csv")]
        contents = ((f"{path}/{name}", lambda name=name: archive.read(name)) for name in found)
    else:
        raise InputError(f"{path} is neither a folder nor a zip file of MMLU's CSV files")
    for name, read in contents:
        try:
            yield name, read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = error.object.count(b"\n", 0, error.start) + 1
            raise InputError(f"{name}:{line} is not UTF-8 text") from None
        except _ZIP_ERRORS as error:
            raise InputError(f"{name} cannot be read: {reason(error)}") from error

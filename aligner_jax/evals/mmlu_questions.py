"""Reads MMLU's questions as published: one CSV file without a header per subject, in a zip or a folder."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from aligner_jax.errors import InputError
from aligner_jax.evals.mmlu_archive import MAX_FILE, is_archive, read_archive
from aligner_jax.files.content import is_folder, read_bytes
from aligner_jax.files.csv_records import csv_rows

Split = Literal["dev", "val", "test"]


class MultipleChoice(NamedTuple):
    """A question with four choices.

    Attributes:
      subject: subject of the question.
      question: text of the question.
      choices: texts of the choices.
      answer: index of the right choice, from 0.
      where: file and line of the question.
    """

    subject: str
    question: str
    choices: tuple[str, ...]
    answer: int
    where: str


def read_mmlu(path: str, split: Split) -> dict[str, list[MultipleChoice]]:
    """Reads the questions of a split by subject ("abstract_algebra"), sorted by subject.

    Args:
      path: MMLU's zip; or the folder of the folders dev, val and test, or its parent if it is called data.
      split: split to read.

    Raises:
      InputError: a file is missing, damaged or larger than MMLU's could be, or a row is not a question, four choices
        and a letter. Names file and line.
    """
    subjects: dict[str, list[MultipleChoice]] = {}
    for name, content in sorted(_files(Path(path), split)):
        subject = Path(name).stem.removesuffix(f"_{split}")
        if subject in subjects:
            raise InputError(f"{path} has two files of the subject {subject!r}: {name} and one before it")
        subjects[subject] = [
            _question(row.fields, subject, f"{name}:{row.end}") for row in csv_rows(io.BytesIO(content), name)
        ]
        if not subjects[subject]:
            raise InputError(f"{name} is empty")
    if not subjects:
        raise InputError(f"{path} has no {split}/SUBJECT_{split}.csv, as MMLU's data have them")
    return subjects


def _question(row: list[str], subject: str, where: str) -> MultipleChoice:
    if len(row) != 6 or row[5].strip() not in ("A", "B", "C", "D"):
        raise InputError(f"{where} is not a question, four choices and a letter of A to D, but {len(row)} fields")
    return MultipleChoice(subject, row[0], tuple(row[1:5]), "ABCD".index(row[5].strip()), where)


def _files(path: Path, split: str) -> Iterator[tuple[str, bytes]]:
    """Yields the names, for error messages, and the contents of a split's files."""
    if is_folder(path):
        folder = next((f for f in (path / split, path / "data" / split) if is_folder(f)), path)
        for file in folder.glob(f"*_{split}.csv"):
            yield str(file), read_bytes(file, most=MAX_FILE)
    elif is_archive(path):
        yield from read_archive(path, lambda name: f"/{split}/" in f"/{name}" and name.endswith(f"_{split}.csv"))
    else:
        raise InputError(
            f"{path} is neither a folder nor a zip file of MMLU's CSV files; unpack it if it is packed in another way"
        )

"""MMLU's own files, in a zip and in a folder, and errors in them."""

import os
import zipfile
from pathlib import Path

import pytest

from aligner_jax.errors import InputError
from aligner_jax.evals.mmlu_questions import MultipleChoice, read_mmlu

ANATOMY = 'Which bone,Hyoid,"Rib, floating",Ulna,Skull,A\n"Two\nlines?",a,b,c,d,C\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in (
        ("test/virology_test", "V?,1,2,3,4,D\n"),
        ("test/anatomy_test", ANATOMY),
        ("dev/anatomy_dev", ""),
    ):
        file = tmp_path / "mmlu" / "data" / f"{name}.csv"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path / "mmlu"


def test_a_zip_and_both_kinds_of_folder_hold_the_same(folder: Path, tmp_path: Path):
    found = read_mmlu(str(folder), "test")
    assert list(found) == ["anatomy", "virology"]
    assert [question[:4] for question in found["anatomy"]] == [
        ("anatomy", "Which bone", ("Hyoid", "Rib, floating", "Ulna", "Skull"), 0),
        ("anatomy", "Two\nlines?", ("a", "b", "c", "d"), 2),
    ]
    assert found["anatomy"][1].where.endswith("anatomy_test.csv:3")
    archive = tmp_path / "mmlu.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*.csv")):
            file.write(path, path.relative_to(folder))
        file.writestr("data/more/virology_test.csv", "of no split,1,2,3,4,A\n")

    def bare(questions: dict[str, list[MultipleChoice]]) -> dict:
        return {name: [question[:4] for question in of_subject] for name, of_subject in questions.items()}

    assert bare(read_mmlu(str(archive), "test")) == bare(read_mmlu(str(folder / "data"), "test")) == bare(found)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "anatomy_test.csv is empty"),
        (
            "q,1,2,3,4,A\nq,1,2,3,4\n",
            "anatomy_test.csv:2 is not a question, four choices and a letter of A to D, but 5",
        ),
        ("q,1,2,3,4,A,B\n", "anatomy_test.csv:1 is not a question, .*, but 7 fields"),
        ("q,1,2,3,4,E\n", "anatomy_test.csv:1 is not a question"),
        ('"q,1,2,3,4,A\n', "anatomy_test.csv:1 is not CSV: unexpected end of data"),
    ],
)
def test_what_is_wrong_is_named_by_file_and_line(folder: Path, text: str, message: str):
    (folder / "data" / "test" / "anatomy_test.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_mmlu(str(folder), "test")


@pytest.mark.parametrize(
    ("mark", "after", "says"),
    [
        (b"PK\x03\x04", 60, r"mmlu.zip/test/a_test.csv cannot be read: Error -3 while decompressing"),
        (b"PK\x01\x02", 0, r"mmlu.zip cannot be read: Bad magic number"),
        (b"PK\x01\x02", 8, r"mmlu.zip/test/a_test.csv cannot be read: compressed patched data"),
    ],
    ids=["data", "directory", "a way of packing"],
)
def test_a_damaged_zip_is_named(tmp_path: Path, mark: bytes, after: int, says: str):
    path = tmp_path / "mmlu.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("test/a_test.csv", "".join(f"{i * i * i}?,a{i},b,c,d,A\n" for i in range(50)))
    content = bytearray(path.read_bytes())
    place = content.index(mark) + after
    content[place : place + 4] = b"\xff" * 4
    path.write_bytes(content)
    with pytest.raises(InputError, match=says):
        read_mmlu(str(path), "test")


def test_bytes_that_are_no_text_and_files_that_are_no_zip(folder: Path, tmp_path: Path):
    (folder / "data" / "test" / "anatomy_test.csv").write_bytes(b"q,1,2,3,4,A\nq\xff,1,2,3,4,A\n")
    with pytest.raises(InputError, match=r"anatomy_test.csv:2 is not UTF-8 text"):
        read_mmlu(str(folder), "test")
    with pytest.raises(InputError, match=r"has no val/SUBJECT_val.csv"):
        read_mmlu(str(folder), "val")
    for path in (tmp_path / "none.zip", folder / "data" / "test" / "virology_test.csv"):
        with pytest.raises(InputError, match="is neither a folder nor a zip file"):
            read_mmlu(str(path), "test")


def zipped(path: Path, contents: dict[str, bytes | str], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in contents.items():
            file.writestr(name, content)
    return path


def test_archives_that_become_far_larger_are_refused(tmp_path: Path):
    path = tmp_path / "mmlu.zip"
    for contents, says in (
        ({"test/a_test.csv": "Q?,1,2,3,4,A\n" * 400_000}, "bytes, and its files far more than MMLU's could have"),
        ({"test/a_test.csv": b"," * 2_500_000 + bytes(os.urandom(2**20))}, ":1: a row has more than 2 MiB"),
        ({f"test/{i}": b"" for i in range(10_001)}, "is no archive of at most 10,000 files"),
    ):
        with pytest.raises(InputError, match=says):
            read_mmlu(str(zipped(path, contents)), "test")
    large = os.urandom(9 * 2**20)
    with pytest.raises(InputError, match=r"a_test.csv has 9,437,184 bytes, and one of MMLU's files at most 8,388,608"):
        read_mmlu(str(zipped(path, {"test/a_test.csv": large})), "test")
    with pytest.raises(InputError, match=r"a_test.csv cannot be read: it is neither stored nor deflated"):
        read_mmlu(str(zipped(path, {"test/a_test.csv": "Q?,1,2,3,4,A\n"}, zipfile.ZIP_LZMA)), "test")


def test_names_in_archives(tmp_path: Path):
    row, path = "Q?,1,2,3,4,A\n", tmp_path / "mmlu.zip"
    with pytest.raises(InputError, match=r"has two files of the subject 'a': .*/test/a_test.csv and one before it"):
        read_mmlu(str(zipped(path, {"test/a_test.csv": row, "more/test/a_test.csv": row})), "test")
    found = read_mmlu(
        str(zipped(path, {"/../test/a_test.csv": row, "__MACOSX/test/._a_test.csv": b"\0\5\x16"})), "test"
    )
    assert list(found) == ["a"]
    content = zipped(path, {"test/a_test.csv": row, "test/b_test.csv": row}).read_bytes()
    # A damaged name in the directory would drop a subject.
    at = content.rindex(b"test/b_test.csv")
    path.write_bytes(content[:at] + b"tesT" + content[at + 4 :])
    with pytest.raises(InputError, match=r"tesT/b_test.csv cannot be read: File name in directory"):
        read_mmlu(str(path), "test")
    at = content.rindex(b"PK\x05\x06")
    path.write_bytes(content[: at + 10] + b"\3" + content[at + 11 :])
    with pytest.raises(InputError, match=r"is damaged: it should have 3 files and has 2"):
        read_mmlu(str(path), "test")

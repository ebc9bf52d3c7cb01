from pathlib import Path

import pytest

from aligner_jax.errors import InputError
from aligner_jax.files.csv_records import csv_records


def test_rows_and_the_lines_they_begin_on(tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbfname,text\r\none,"two\nlines, and ""quotes"""\r\n\r\ntwo,\r\n')
    assert list(csv_records(path)) == [
        ({"name": "one", "text": 'two\nlines, and "quotes"'}, f"{path}:2"),
        ({"name": "two", "text": ""}, f"{path}:5"),
    ]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", " is empty"),
        (b"a,b\n", " has a header and no rows"),
        (b"a,b,a\n1,2,3\n", ":1 names the column 'a' twice"),
        (b"a,b\n1,2\n1,2,3\n", ":3: the row has 3 fields, but the header 2"),
        (b'a,b\n1,2\n3,"4\n5,6\n', ":3 is not CSV: unexpected end of data"),
        (b'a,b\n1,"2"x\n', ":2 is not CSV: "),
        (b"a,b\n1,\xff\n", ":2 is not UTF-8 text"),
    ],
)
def test_bad_files(tmp_path: Path, content: bytes, says: str):
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        list(csv_records(path))
    assert str(caught.value).startswith(f"{path}{says}")


def test_a_file_that_is_not_there(tmp_path: Path):
    with pytest.raises(InputError, match=r"^there is no file .*none\.csv$"):
        list(csv_records(tmp_path / "none.csv"))


def test_pieces_do_not_show_in_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text = 'name,text\r\n"é\r\n😀",b\rc,"d\n"\n\nlast,x'
    path = tmp_path / "a.csv"
    path.write_bytes(text.encode())
    expected = [("é\r\n😀", "b", 2), ("c", "d\n", 4), ("last", "x", 7)]
    for size in (1, 2, 3, 7, 2**16):
        monkeypatch.setattr("aligner_jax.files.csv_records._PIECE", size)
        found = [(*row.values(), int(where.rpartition(":")[2])) for row, where in csv_records(path)]
        assert found == expected


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'a,b\n1,"' + b"x" * 200_000 + b'"\n', ":2 is not CSV: field larger than field limit (131072)"),
        (b"a,b\n1," + b"," * 3_000_000, ":2: a row has more than 2 MiB"),
        (b"a,b\n1," + b'"x\n",' * 500_000, ":2: a row has more than 2 MiB"),
        (b",".join(b"%d" % i for i in range(5000)) + b"\n", ":1 names 5,000 columns, and a file has at most 1,000"),
    ],
    ids=["field", "line", "row of lines", "header"],
)
def test_rows_have_bounds(tmp_path: Path, content: bytes, says: str):
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        list(csv_records(path))
    assert str(caught.value).startswith(f"{path}{says}")


def test_millions_of_blank_lines_are_refused(tmp_path: Path):
    path = tmp_path / "blank.csv"
    path.write_bytes(b"a,b\n" + b"\n" * 400_000 + b"1,2\n")
    with pytest.raises(
        InputError, match=r"blank\.csv:300003: the table has more than 300,000 blank lines: remove them"
    ):
        list(csv_records(path))

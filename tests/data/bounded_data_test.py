"""Data files that try to fill the memory or to stop the reader, and files with other columns."""

import contextlib
import gzip
import json
import lzma
import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet
from source_samples import SAMPLES, lines, refusal

from aligner_jax.data.sources import load_dataset
from aligner_jax.data.sources.records import open_records
from aligner_jax.errors import InputError
from aligner_jax.files.thrift import Malformed, read_struct

RECORD, EXPECTED = SAMPLES["alpaca"]
MEBIBYTE = 2**20


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@contextlib.contextmanager
def less_than(most: int) -> Iterator[None]:
    """Fails if the process's memory grows by `most` bytes or more."""

    def resident(name: str) -> int:
        status = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith(name))

    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS:")
    yield
    assert resident("VmHWM:") - before < most


def table(path: Path, columns: dict, **options) -> Path:
    parquet.write_table(pyarrow.table(columns), path, **options)
    return path


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl.xz", lzma.compress(b" " * 2**26, preset=0), ":1 holds a value of more than 4 MiB"),
        ("a.jsonl.gz", gzip.compress(b" " * 2**26, 1), ":1 holds a value of more than 4 MiB"),
        ("a.json.gz", gzip.compress(b'["' + b"a" * 2**26, 1), ":1 holds a value of more than 4 MiB"),
        ("a.jsonl.gz", gzip.compress(b"\n" * 2**26, 1), " becomes "),
        ("a.jsonl.gz", gzip.compress(b'{"instruction":"a","output":"b"}\n' * 2**20), " becomes "),
        ("a.json.gz", gzip.compress(b'[{"a":' + b"[]," * 500_000 + b"1]"), ":1"),
        (
            "a.jsonl",
            b'{"instruction": [' + b"[]," * 500_000,
            ":1 is not JSON that can be read: it has more than 400,000 values",
        ),
        ("a.jsonl", b'{"' + b"k" * 2**20 + b'": 1}', ":1: the record's fields are 'kkk"),
    ],
    ids=["xz", "gz", "string", "newlines", "records", "lists in gz", "lists", "key"],
)
def test_small_files_that_become_large_ones_are_refused(tmp_path, name, content, says):
    path = written(tmp_path / name, content)
    with less_than(2 * path.stat().st_size + 64 * MEBIBYTE):
        assert says in refusal(path)


def test_devices_pipes_and_paths_that_are_none_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in ("/dev/zero", str(tmp_path / "pipe"), "a\0b", "x" * 5000):
        with pytest.raises(InputError) as caught:
            load_dataset(path)
        assert len(str(caught.value)) <= 400


def test_a_damaged_second_stream_is_not_the_files_end(tmp_path):
    first, second = (json.dumps({**RECORD, "output": text}).encode() + b"\n" for text in ("Oak", "Pine"))
    path = written(tmp_path / "a.jsonl.xz", lzma.compress(first) + bytes(8) + lzma.compress(second))
    assert [e.answer for e in load_dataset(path).examples] == ["Oak", "Pine"]
    damaged = lzma.compress(first) + b"\xfe" + lzma.compress(second)[1:]
    assert " cannot be decompressed: " in refusal(written(tmp_path / "b.jsonl.xz", damaged))
    zipped = gzip.compress(first) + gzip.compress(second)
    assert len(load_dataset(written(tmp_path / "c.jsonl.gz", zipped)).examples) == 2
    padded = gzip.compress(first) + bytes(20_000) + gzip.compress(b"") * 50_000 + gzip.compress(second)
    assert len(load_dataset(written(tmp_path / "d.jsonl.gz", padded)).examples) == 2
    assert " cannot be decompressed: Not a gz" in refusal(written(tmp_path / "e.jsonl.gz", zipped + b"x"))
    assert " is cut short" in refusal(written(tmp_path / "f.jsonl.gz", zipped + zipped[:5]))
    long_name = b"\x1f\x8b\x08\x08" + bytes(6) + b"a" * 2**24
    assert " is cut short" in refusal(written(tmp_path / "g.jsonl.gz", long_name))


def test_a_disk_that_fails_is_one_sentence(tmp_path):
    for name in ("a.jsonl", "a.jsonl.gz", "a.parquet"):
        (tmp_path / name).symlink_to("/proc/self/mem")
        assert "cannot be read: Input/output error" in refusal(tmp_path / name)


@pytest.mark.parametrize("pieces", [1, 7, 64, MEBIBYTE])
def test_pieces_do_not_show_in_what_is_read(tmp_path, monkeypatch, pieces):
    """Texts, lines and errors do not depend on where the text is cut."""
    monkeypatch.setattr("aligner_jax.data.sources.bounded._PIECE", pieces)
    records = [{**RECORD, "output": f"é😀\u2028 {i}", "id": [i, -1.5e3, True]} for i in range(5)]
    for number, text in enumerate((
        json.dumps(records, ensure_ascii=False), json.dumps(records, indent=2), "\n\n" + json.dumps(records) + "\n",
        "\n".join(json.dumps(record, ensure_ascii=False) + "\r\n" for record in records),
    )):  # fmt: skip
        path = written(tmp_path / f"{number}.json", text.encode())
        places = [int(e.where.rpartition(":")[2]) for e in load_dataset(path).examples]
        assert [e.answer for e in load_dataset(path).examples] == [f"é😀\u2028 {i}" for i in range(5)]
        assert places == {0: [1] * 5, 1: [2, 12, 22, 32, 42], 2: [3] * 5, 3: [1, 3, 5, 7, 9]}[number]
    text = json.dumps(records, indent=2)
    wrong = text.replace('"id"', '"id', 4).replace('"id', '"id"', 3)
    assert refusal(written(tmp_path / "w.json", wrong.encode())).startswith(
        ":36 is not JSON: Invalid control character at (column 11)"
    )
    assert (
        refusal(written(tmp_path / "x.json", text[:-3].encode()))
        == ":51 is not JSON: Expecting ',' delimiter (column 3)"
    )
    one = json.dumps(records).replace(' 3"', '" 3')
    assert refusal(written(tmp_path / "y.json", one.encode())).endswith(f"(column {one.index('" 3') + 3})")
    bad = text.encode().replace(b" 4", b"\xff4")
    assert refusal(written(tmp_path / "z.json", bad)) == ":45 is not UTF-8 text"


@pytest.mark.parametrize("text", ["[", "[ ", '[{"a": 1},', '[{"a": 1}, ', '[{"a"', '[{"a": "', "[-", "[tru"])
def test_arrays_that_end_anywhere_are_refused(tmp_path, text):
    for content in (text.encode(), gzip.compress(text.encode())):
        assert ":1" in refusal(written(tmp_path / "a.json", content))


def test_a_field_twice_and_depth_are_refused_as_in_every_json(tmp_path):
    path = written(tmp_path / "a.jsonl", b'{"instruction": "a", "output": "b", "output": "c"}')
    assert refusal(path) == ":1 is not JSON that can be read: an object has the field 'output' twice"
    deep = json.dumps({**RECORD, "x": 1}).replace(": 1", ": " + "[" * 200 + "]" * 200).encode()
    for name, text in (("b.jsonl", deep), ("b.json", b"[" + deep + b"]")):
        assert refusal(written(tmp_path / name, text)) == ":1 is not JSON that can be read: it is nested too deeply"


def test_columns_that_are_not_used_are_not_read(tmp_path):
    decimals = pyarrow.array([1], pyarrow.decimal128(38, 2))
    path = table(tmp_path / "a.parquet", {**{k: [v] for k, v in RECORD.items()}, "price": decimals, "id": [1]})
    dataset = load_dataset(path)
    assert [e.record for e in dataset.examples] == [EXPECTED]
    assert dataset.unused == {"price": 1}
    assert "price" not in next(open_records(path, ["instruction"]).rows)[0]
    turns = pyarrow.array(
        [[{"role": "user", "content": "Hi", "at": 2**62}, {"role": "assistant", "content": "Hello", "at": 2**62}]],
        pyarrow.list_(
            pyarrow.struct({"role": pyarrow.string(), "content": pyarrow.string(), "at": pyarrow.timestamp("us")})
        ),
    )
    (example,) = load_dataset(table(tmp_path / "b.parquet", {"messages": turns})).examples
    assert example.record == SAMPLES["messages"][1]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (
            pyarrow.array([2**62], pyarrow.timestamp("us")),
            "holds the timestamp[us] 4611686018427387904, which is no time",
        ),
        (pyarrow.array([0], pyarrow.timestamp("s", "Foo/Bar")), "is in the time zone 'Foo/Bar', which is none"),
        (pyarrow.array([2**31 - 1], pyarrow.date32()), "holds the date32[day] 2147483647, which is no time"),
        (pyarrow.array([2**62], pyarrow.duration("s")), "holds the duration[s] 4611686018427387904, which is no time"),
    ],
)
def test_times_that_are_none_are_named(tmp_path, values, says):
    columns = {name: [value] for name, value in RECORD.items()}
    sentence = refusal(table(tmp_path / "a.parquet", {**columns, "t": values}))
    assert sentence == f" may be damaged: its column 't', which is not needed, {says}; write the file without it"
    good = pyarrow.array([0], values.type if "Foo" not in str(values.type) else pyarrow.timestamp("ns", "+01:00"))
    assert len(load_dataset(table(tmp_path / "b.parquet", {**columns, "t": good})).examples) == 1


def repeated(rows: int, size: int) -> pyarrow.DictionaryArray:
    return pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * rows, pyarrow.int32()), pyarrow.array(["a" * size]))


def test_texts_that_a_table_holds_once_are_counted_where_they_are_meant(tmp_path):
    """A file of a few kilobytes stands for 100 MB: as a column, as the turns of one row, and as one page."""
    path = tmp_path / "a.parquet"
    for store_schema in (True, False):
        options = {"compression": "zstd", "store_schema": store_schema}
        columns = {"instruction": repeated(100_000, 1000), "output": [""] * 100_000}
        assert " becomes " in refusal(table(path, columns, **options))
        turn = pyarrow.StructArray.from_arrays([repeated(100_000, 4), repeated(100_000, 1000)], ["role", "content"])
        turns = pyarrow.ListArray.from_arrays([0, 100_000], turn)
        table(path, {"messages": turns}, **options)
        with less_than(2 * path.stat().st_size + 64 * MEBIBYTE):
            assert " becomes " in refusal(path)
        rows = pyarrow.ListArray.from_arrays([0, 5_000, 10_000], turn.slice(0, 10_000))
        assert refusal(table(path, {"messages": rows}, **options)) == (
            ", row 1 holds more than 4 MiB, and a record has at most that"
        )
    page = {"instruction": ["a" * 100_000_000], "output": ["b"]}
    assert "is damaged: its column 'instruction' has a page of" in refusal(
        table(path, page, compression="zstd", use_dictionary=False)
    )


def test_page_headers_and_footers_that_contradict_each_other(tmp_path):
    columns = {"instruction": ["a", "b"], "output": ["c", "d"]}
    content = table(tmp_path / "a.parquet", columns, compression="none").read_bytes()
    header = read_struct(content, 4)
    assert header.fields[1] == 2
    # Offset of the size of the decompressed dictionary page, in its header.
    at = content.index(b"\x15\x04\x15")
    for damaged, says in (
        (content[: at + 3] + b"\xfe\xff\xff\xff\x0f" + content[at + 4 :], " is damaged: its column 'instruction' "),
        (content[:-8] + (2**31).to_bytes(4, "little") + b"PAR1", " cannot be read as Parquet: its metadata should be"),
        (content[:-5], " cannot be read as Parquet: it does not end with PAR1, so it may be cut short"),
    ):
        assert refusal(written(tmp_path / "b.parquet", damaged)).startswith(says)
    twice = pyarrow.table([["a"], ["b"], ["c"]], names=["instruction", "output", "output"])
    parquet.write_table(twice, tmp_path / "c.parquet")
    assert refusal(tmp_path / "c.parquet") == " has two columns of the name 'output'"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"\x15", "too early"), (b"\x1c" * 40, "deeply"), (b"\x19" + b"\xf5\xff\xff\xff\x7f", "many elements"),
        (b"\x18\x7fa", "too early"), (b"\x15" + b"\xff" * 20, "too many bytes"), (b"\x1e\0", "unknown type"),
    ],
)  # fmt: skip
def test_bytes_that_are_no_structure(data, says):
    with pytest.raises(Malformed, match=says):
        read_struct(data)


def test_structures_of_every_type():
    # Fields 1 (flag), 2 (integer), 20 (text), 21 (list of flags), 22 (structure), as the specification encodes them.
    data = bytes([0x11, 0x15, 0x05, 0x08, 0x28, 0x02, 0x68, 0x69, 0x19, 0x21, 1, 2, 0x1C, 0x12, 0, 0])
    assert read_struct(data) == ({1: True, 2: -3, 20: b"hi", 21: [True, False], 22: {1: False}}, len(data))


def test_lines_of_a_large_file_are_all_read(tmp_path):
    """The file is longer than a piece, and some lines cross the borders of pieces."""
    records = [{**RECORD, "output": f"{i} " * 200} for i in range(2000)]
    path = lines(tmp_path / "a.jsonl", *records)
    assert path.stat().st_size > MEBIBYTE
    for each in (path, written(tmp_path / "b.json", json.dumps(records).encode())):
        assert [e.record.output for e in load_dataset(each).examples] == [r["output"] for r in records]

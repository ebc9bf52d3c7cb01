"""Files of every kind: JSON, JSON lines and Parquet, compressed, damaged and truncated."""

import datetime
import gzip
import json
import lzma
import random
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet
from source_samples import SAMPLES, as_parquet, every_source, lines, refusal

from aligner_jax.data.sources import load_dataset, load_examples
from aligner_jax.errors import InputError


@every_source
def test_a_record_becomes_what_it_says_in_every_kind_of_file(tmp_path, name):
    record, expected = SAMPLES[name]
    path = lines(tmp_path / "a.jsonl", record, record)
    array = tmp_path / "a.json"
    array.write_text(json.dumps([record, record]))
    zipped, xz, unnamed = tmp_path / "a.jsonl.gz", tmp_path / "a.jsonl.xz", tmp_path / "zipped"
    zipped.write_bytes(gzip.compress(path.read_bytes()))
    unnamed.write_bytes(gzip.compress(path.read_bytes()))
    xz.write_bytes(lzma.compress(path.read_bytes()))
    for file in (path, array, zipped, xz, unnamed, as_parquet(tmp_path / "a.parquet", record, record)):
        assert [e.record for e in load_examples(file, name)] == [expected, expected], file
        assert [e.record for e in load_examples(file)] == [expected, expected], file


def test_where_is_the_line_or_the_row(tmp_path):
    record, _ = SAMPLES["gsm8k"]
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b"\n" + json.dumps(record).encode()))
    assert [e.where for e in load_examples(path)] == [f"{path}:2"]
    path = as_parquet(tmp_path / "a.parquet", *[record] * 1025)
    assert [e.where for e in load_examples(path)][::1024] == [f"{path}, row 1", f"{path}, row 1025"]


def test_columns_that_are_no_text(tmp_path):
    path = as_parquet(tmp_path / "a.parquet", {"question": "When?", "answer": datetime.date(2024, 2, 29)})
    assert refusal(path) == ", row 1: the field 'answer' holds a date, not text"
    broken = pyarrow.array([b"\xff"]).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"question": ["When?"], "answer": broken}), path)
    assert refusal(path) == ", among rows 1 to 1024: a column of text is not UTF-8"


@every_source
def test_damaged_files_are_refused_by_file_and_line(tmp_path, name):
    record, _ = SAMPLES[name]
    good = json.dumps(record)

    def written(name: str, content: bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content)
        return path

    zipped, xz = gzip.compress(good.encode()), lzma.compress(good.encode())
    table = as_parquet(tmp_path / "good.parquet", record).read_bytes()
    (empty := tmp_path / "s").mkdir()
    for path, words in (
        (written("a.jsonl", b""), " is empty"),
        (written("b.jsonl.gz", b""), " is empty"),
        (written("c.jsonl.gz", gzip.compress(b"\n")), " is empty"),
        (written("d.parquet", b""), " is empty"),
        (written("e.jsonl", f"{good}\n{good[:-9]}\n".encode()), ":2 is not JSON: "),
        (written("f.json", f"[\n{good},\n{good[:-9]}".encode()), ":3 is not JSON: "),
        (
            written("g.jsonl", f"{good}\n{'[' * 100_000}\n".encode()),
            ":2 is not JSON that can be read: it is nested too deeply",
        ),
        (
            written("g.json", f"[\n{good},\n{'[' * 100_000}\n".encode()),
            ":3 is not JSON that can be read: it is nested too deeply",
        ),
        (
            written("h.jsonl", f'{good}\n{{"a": {"1" * 5000}}}\n'.encode()),
            ":2 is not JSON that can be read: it holds a number with too",
        ),
        (written("i.jsonl", f"{good}\n".encode() + b'{"a": "\xff"}'), ":2 is not UTF-8 text"),
        (written("j.jsonl.gz", zipped[:-9]), " is cut short"),
        (written("k.jsonl.gz", good.encode()), " cannot be decompressed: Not a gzipped file"),
        (written("l.jsonl.gz", zipped[:12] + b"\0\0" + zipped[14:]), " cannot be decompressed: "),
        (written("m.jsonl.xz", xz[:-9]), " is cut short"),
        (written("n.jsonl.xz", good.encode()), " cannot be decompressed: "),
        (written("o.parquet", table[:-20]), " cannot be read as Parquet: "),
        (written("p.parquet", good.encode()), " cannot be read as Parquet: "),
        (written("q.parquet", table[:4] + bytes(len(table) - 8) + table[-4:]), " cannot be read as Parquet: "),
        (empty, " holds no file of examples"),
    ):
        assert refusal(path, name).startswith(words), path
    with pytest.raises(InputError, match=r"^there is no file .*nothing\.jsonl$"):
        load_dataset(tmp_path / "nothing.jsonl", name)
    no_rows = tmp_path / "r.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([record]).slice(0, 0), no_rows)
    assert refusal(no_rows, name) == " holds no records"


@every_source
def test_whatever_is_done_to_a_file_it_is_read_or_refused_in_a_sentence(tmp_path, name):
    """Bytes are removed, doubled and overwritten at random; only an InputError may be raised."""
    record, _ = SAMPLES[name]
    originals = [
        lines(tmp_path / "a.jsonl", record, record).read_bytes(),
        json.dumps([record, record], indent=1).encode(),
        gzip.compress(json.dumps(record).encode()),
        as_parquet(tmp_path / "a.parquet", record, record).read_bytes(),
    ]
    generator, path, refusals = random.Random(name), tmp_path / "b", []
    for _ in range(120):
        content = bytearray(generator.choice(originals))
        start = generator.randrange(len(content))
        end = min(start + generator.randrange(1, 20), len(content))
        content[start:end] = generator.choice([b"", bytes(content[start:end]) * 2, generator.randbytes(end - start)])
        path.write_bytes(content)
        try:
            load_dataset(path, generator.choice(["auto", name]))
        except InputError as error:
            refusals.append(str(error))
    assert [sentence for sentence in refusals if "\n" in sentence or not sentence.startswith(str(path))] == []
    assert len(refusals) > 40

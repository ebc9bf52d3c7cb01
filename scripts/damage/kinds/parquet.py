"""Parquet tables of several sources: their pages, page headers, footers, types and compression."""

import io
import random
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from aligner_jax.data.sources import load_dataset
from scripts.damage.kinds import mutations
from scripts.damage.kinds.kind import Files, Kind

_TURNS = [{"role": "user", "content": "Name a tree."}, {"role": "assistant", "content": "Pine é"}]
_TABLES = (
    {"instruction": [f"Add {i}." for i in range(40)], "input": [""] * 40, "output": [str(i) for i in range(40)]},
    {"messages": [_TURNS] * 20, "system": ["Be brief.", None] * 10, "number": list(range(20))},
    {"prompt": ["Hi"] * 9, "chosen": ["Hello"] * 9, "rejected": [f"What {i}?" for i in range(9)]},
    {"instruction": ["And?"] * 6, "output": [f"R{i}" for i in range(6)], "history": [[["Begin.", "Sun."]]] * 6},
    {
        "prompt": [_TURNS[:1]] * 5, "chosen": [_TURNS[1:]] * 5,
        "rejected": [[{"role": "assistant", "content": f"O{i}"}] for i in range(5)],
    },
)  # fmt: skip
_WAYS = (
    {}, {"compression": "zstd"}, {"compression": "gzip", "row_group_size": 4}, {"compression": "none"},
    {"use_dictionary": False, "compression": "brotli"}, {"data_page_version": "2.0", "compression": "lz4"},
    {"write_page_checksum": True}, {"data_page_size": 32, "write_batch_size": 4, "store_schema": False},
    {"use_dictionary": False, "column_encoding": "DELTA_BYTE_ARRAY"},
)  # fmt: skip


def _written(table: pyarrow.Table, **options: Any) -> bytes:
    buffer = io.BytesIO()
    parquet.write_table(table, buffer, **options)
    return buffer.getvalue()


def samples() -> list[Files]:
    """Returns each table, written in several ways."""
    found = []
    for number, columns in enumerate(_TABLES):
        for way in _WAYS[number % 2 :: 2] + _WAYS[:1]:
            options: dict[str, Any] = dict(way)
            if "column_encoding" in options and number not in (0, 2):
                continue
            if "column_encoding" in options:
                options["column_encoding"] = dict.fromkeys(columns, "DELTA_BYTE_ARRAY")
            found.append({"a.parquet": _written(pyarrow.table(columns), **options)})
    return found


def mutate(rng: random.Random, files: Files) -> Files:
    """Returns the file with damaged bytes, a table with other types, names or values, or a decompression bomb."""
    content = files["a.parquet"]
    footer = int.from_bytes(content[-8:-4], "little")
    begin = len(content) - 8 - footer
    change = rng.randrange(20)
    if change < 5:
        return {"a.parquet": mutations.of_bytes(rng, content)}
    if change < 11:
        damaged = mutations.of_bytes(rng, content[begin:-8])
        length = len(damaged) if rng.randrange(4) else rng.choice((footer, 0, 2**31 - 1, 2**32 - 1))
        return {"a.parquet": content[:begin] + damaged + length.to_bytes(4, "little") + b"PAR1"}
    if change < 15:
        damaged = mutations.of_bytes(rng, content[4:begin])
        if rng.randrange(2):
            # Offsets in the footer stay valid.
            damaged = (damaged + bytes(begin))[: begin - 4]
        return {"a.parquet": content[:4] + damaged + content[begin:]}
    if change < 19:
        return {"a.parquet": _retyped(rng, content)}
    return {"a.parquet": _bomb(rng)}


def read(folder: Path) -> str:
    """Returns the records, their rows and the counts."""
    path = folder / "a.parquet"
    dataset = load_dataset(path)
    examples = [(example.record, example.where.removeprefix(str(path))) for example in dataset.examples]
    return repr((examples, dataset.dropped, str(dataset)))


def may_differ(sample: Files, damaged: Files) -> bool:
    """Returns True: footers and page headers have no checksum, and pages have one only if the writer added it."""
    return True


def _retyped(rng: random.Random, content: bytes) -> bytes:
    """Changes a column: another type or name, duplicated, removed, or with nulls."""
    table = parquet.read_table(io.BytesIO(content))
    at = rng.randrange(table.num_columns)
    name, rows = table.column_names[at], table.num_rows
    kinds = (
        pyarrow.int64(), pyarrow.float64(), pyarrow.bool_(), pyarrow.timestamp("us"), pyarrow.timestamp("s", "Foo/Bar"),
        pyarrow.date32(), pyarrow.duration("s"), pyarrow.time64("ns"), pyarrow.decimal128(38, 2), pyarrow.binary(),
        pyarrow.binary(8), pyarrow.large_string(), pyarrow.list_(pyarrow.string()), pyarrow.null(),
        pyarrow.map_(pyarrow.string(), pyarrow.string()), pyarrow.struct({"a": pyarrow.string()}),
        pyarrow.list_(pyarrow.struct({"role": pyarrow.string(), "content": pyarrow.timestamp("us")})), pyarrow.string(),
    )  # fmt: skip
    kind = rng.choice(kinds)
    values: list = [None] * rows
    if rng.randrange(4):
        raw = rng.choice(
            (2**62, -(2**62), 2**31 - 1, 0, 1, "x", b"\xff", 0.5, True, [], ["x"], [["a", "b"]], {"a": "b"})
        )
        try:
            values = pyarrow.array([raw] * rows).cast(kind)
        except (pyarrow.ArrowException, ValueError, OverflowError):
            values = pyarrow.nulls(rows, kind)
    else:
        values = pyarrow.nulls(rows, kind)
    change = rng.randrange(5)
    if change == 0:
        table = table.set_column(at, name, values)
    elif change == 1:
        table = table.append_column(
            rng.choice(("extra", name, "system", "history", "", "a.b", "\x1b[2J", "k" * 5000)), values
        )
    elif change == 2:
        table = table.rename_columns(
            [rng.choice(("x", name, "prompt", "text")) if i == at else n for i, n in enumerate(table.column_names)]
        )
    elif change == 3:
        table = table.drop_columns([name])
    elif pyarrow.types.is_string(table.schema.field(at).type):
        bad = pyarrow.array([rng.choice((b"\xff", b"a\0b", b"\xed\xa0\x80"))] * rows).view(pyarrow.string())
        table = table.set_column(at, name, rng.choice((bad, table.column(at).combine_chunks().dictionary_encode())))
    options = {"compression": rng.choice(("snappy", "zstd", "none")), "store_schema": rng.randrange(4) > 0}
    try:
        return _written(table, **options)
    except (pyarrow.ArrowException, OSError):
        # The format has no such values.
        return content[:-1]


def _bomb(rng: random.Random) -> bytes:
    """Returns a small file that declares hundreds of megabytes."""
    rows, size = rng.choice(((200_000, 1000), (1, 300_000_000), (300, 1_000_000), (2_000_000, 1)))
    text = pyarrow.array(["a" * size])
    repeated = pyarrow.DictionaryArray.from_arrays(pyarrow.nulls(rows, pyarrow.int32()).fill_null(0), text)
    short = pyarrow.array([""] * rows)
    if rng.randrange(2) or size > 1_000_000:
        table = pyarrow.table({"instruction": repeated, "output": short})
        return _written(table, compression="zstd", store_schema=rng.randrange(2) > 0)
    turn = pyarrow.StructArray.from_arrays([short, repeated], ["role", "content"])
    lists = pyarrow.ListArray.from_arrays(pyarrow.array([0, rows], pyarrow.int32()), turn)
    return _written(pyarrow.table({"messages": lists}), compression="zstd", store_schema=rng.randrange(2) > 0)


KIND = Kind("parquet", samples, mutate, read, may_differ)

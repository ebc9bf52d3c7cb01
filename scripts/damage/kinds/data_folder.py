"""Folders of data files in the layout of the hub and others: their names, and damaged files among them."""

import io
import json
import random
from pathlib import Path

import pyarrow
from pyarrow import parquet

from aligner_jax.data.sources import load_dataset
from scripts.damage.kinds import mutations
from scripts.damage.kinds.kind import Files, Kind

_NAMES = (
    "train.jsonl", "test.jsonl", "data/train-00000-of-00002.parquet", "train-00001-of-00002.jsonl", "en/train.csv",
    "train-99999-of-99999.parquet", "train-00000-of-00000.jsonl", "a/b/c/d/e/f/train.jsonl", "\x1b[2J.jsonl", ".jsonl",
    "train/0000.parquet", "state.json", "dataset_info.json", "x" * 200 + ".txt", "train.parquet.gz", "traintest.csv",
)  # fmt: skip


def samples() -> list[Files]:
    """Returns folders of Parquet shards, of JSON lines with a held-out split, and of tables."""
    shards = {f"data/train-0000{i}-of-00003.parquet": _parquet(i) for i in range(3)}
    return [
        {**shards, "data/test-00000-of-00001.parquet": _parquet(9), "README.md": b"---\n"},
        {"train.jsonl": _lines(1), "test.jsonl": _lines(2)},
        {"a.jsonl": _lines(1), "b.jsonl": _lines(2), "notes.md": b"x"},
        {"train/0000.csv": b"question,answer\nHi,Hello\n", "dev/0000.csv": b"question,answer\nHi,What\n"},
        {"one.txt": b"A text.\n\nAnother.\n", "two.txt": b"A third.\n"},
    ]


def mutate(rng: random.Random, files: Files) -> Files:
    """Returns the folder with a file that is damaged, renamed, left out or added."""
    changed = dict(files)
    name = rng.choice(sorted(changed))
    change = rng.randrange(10)
    if change < 5:
        changed[name] = mutations.of_bytes(rng, changed[name])
    elif change < 7:
        content = changed.pop(name)
        _add(changed, rng.choice((rng.choice(_NAMES), name.replace("train", "validation"))), content)
    elif change == 7:
        del changed[name]
    else:
        _add(changed, rng.choice(_NAMES), rng.choice((_lines(3), _parquet(3), b"", b"text\nx\n", changed[name])))
    return changed


def _add(files: dict[str, bytes], name: str, content: bytes) -> None:
    """Adds a file, unless a file or a folder stands in its place."""
    parents = [name.rpartition("/")[0]]
    while parents[-1]:
        parents.append(parents[-1].rpartition("/")[0])
    if not any(parent in files for parent in parents) and not any(other.startswith(f"{name}/") for other in files):
        files[name] = content


def read(folder: Path) -> str:
    """Returns the records, their places and the counts."""
    dataset = load_dataset(folder)
    examples = [(example.record, example.where.removeprefix(str(folder))) for example in dataset.examples]
    return repr((examples, dataset.dropped, str(dataset)))


def may_differ(sample: Files, damaged: Files) -> bool:
    """Returns True: neither names nor JSON lines have checksums."""
    return True


def _lines(number: int) -> bytes:
    records = [{"question": f"{number} + {i}?", "answer": f"{number + i}"} for i in range(4)]
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def _parquet(number: int) -> bytes:
    buffer = io.BytesIO()
    columns = {"question": [f"{number} + {i}?" for i in range(6)], "answer": [f"{number + i}" for i in range(6)]}
    parquet.write_table(pyarrow.table(columns), buffer)
    return buffer.getvalue()


KIND = Kind("data_folder", samples, mutate, read, may_differ)

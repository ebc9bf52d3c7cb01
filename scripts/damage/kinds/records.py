"""JSON arrays and JSON lines of several sources, plain, in gzip and in xz."""

import gzip
import json
import lzma
import random
import zlib
from collections.abc import Callable
from pathlib import Path

from aligner_jax.data.sources import load_dataset
from scripts.damage.kinds import mutations
from scripts.damage.kinds.kind import Files, Kind

_TURNS = [{"role": "user", "content": "Name a tree."}, {"role": "assistant", "content": "Pine \u2028é"}]
_PAIR = {"prompt": _TURNS[:1], "chosen": _TURNS[1:], "rejected": [{"role": "assistant", "content": "Oil"}]}
_RECORDS: tuple[list[dict], ...] = (
    [{"instruction": f"Add {i}.", "input": "", "output": f"{i + 1}", "system": "Be brief."} for i in range(8)],
    [{"instruction": "And?", "output": f"Rain {i}.", "history": [["Begin.", "Sun."]], "id": i} for i in range(4)],
    [{"messages": _TURNS, "tools": []} for _ in range(4)],
    [{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": f"Hello {i}"}]} for i in range(4)],
    [_PAIR] * 3,
    [{"prompt": "Hi", "chosen": "Hello", "rejected": f"What {i}?"} for i in range(4)],
    [{"question": f"{i} + 1?", "answer": f"#### {i + 1}"} for i in range(6)],
    [{"chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": f"\n\nHuman: Hi\n\nAssistant: {i}"} for i in range(4)],
)


def samples() -> list[Files]:
    """Returns each source's records in one of the formats."""
    forms: list[Files] = []
    for number, records in enumerate(_RECORDS):
        array = json.dumps(records, indent=number % 3 or None).encode()
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
        forms += [{"a.json": array}, {"a.jsonl": lines}, {"a.jsonl.gz": gzip.compress(lines, mtime=0)}]
        forms += [{"a.json.xz": lzma.compress(array)}, {"b": gzip.compress(array, mtime=0)}]
    return forms


def mutate(rng: random.Random, files: Files) -> Files:
    """Returns the file with a damaged text or damaged bytes, or a file that tries to fill the memory."""
    ((name, content),) = files.items()
    pack, text = _unpacked(name, content)
    change = rng.randrange(20)
    if change == 0:
        return {rng.choice((name, "a.jsonl")): rng.choice(_bombs())()}
    if change < 8:
        return {name: mutations.of_bytes(rng, content)}
    if change < 11:
        return {name: pack(mutations.of_bytes(rng, text))}
    if text.startswith(b"["):
        return {name: pack(mutations.of_json(rng, text))}
    lines = text.splitlines(keepends=True)
    at = rng.randrange(len(lines))
    lines[at] = mutations.of_json(rng, lines[at]) + rng.choice((b"\n", b"\n", b"\n", b"\r\n", b""))
    return {name: pack(b"".join(lines))}


def read(folder: Path) -> str:
    """Returns the records, their lines and the counts."""
    (path,) = folder.iterdir()
    dataset = load_dataset(path)
    examples = [(example.record, example.where.removeprefix(str(path))) for example in dataset.examples]
    return repr((examples, dataset.dropped, str(dataset)))


def may_differ(sample: Files, damaged: Files) -> bool:
    """Returns True if no checksum of gzip or xz fails."""
    ((name, content),) = damaged.items()
    try:
        _unpacked(name, content)
    except (OSError, EOFError, lzma.LZMAError, zlib.error):
        return False
    return True


def _unpacked(name: str, content: bytes) -> tuple[Callable[[bytes], bytes], bytes]:
    if name.endswith(".xz") or content.startswith(b"\xfd7zXZ\0"):
        return lzma.compress, lzma.decompress(content)
    if name.endswith(".gz") or content.startswith(b"\x1f\x8b"):
        return gzip.compress, gzip.decompress(content)
    return lambda text: text, content


def _bombs() -> list[Callable[[], bytes]]:
    """Returns small files that decompress to 40 MB, and texts that become large values."""
    repeated = (b" ", b"\n", b"[", b"[],", b'{"instruction":"a","output":"b"}\n', b'{"a":', b"0,", b"\0")

    def zipped(part: bytes, begin: bytes = b"") -> Callable[[], bytes]:
        return lambda: gzip.compress(begin + part * (40_000_000 // len(part)), 1)

    def xz(part: bytes) -> Callable[[], bytes]:
        return lambda: lzma.compress(part * (40_000_000 // len(part)), preset=0)

    wide = '{"instruction": "a", "output": "' + "😀é" * 500_000 + '"}'
    return [
        *(zipped(part) for part in repeated),
        zipped(b'{"instruction":"a","output":"b"},\n', b"["),
        zipped(b'"a",', b'{"instruction": ['),
        xz(b" "),
        xz(b'{"instruction":"a","output":"b"}\n'),
        lambda: b'{"instruction": [' + b"[]," * 700_000,
        lambda: b"[" * 5_000_000,
        lambda: wide.encode() + b"\n" + b" " * 5_000_000,
        lambda: b'{"' + b"k" * 5_000_000 + b'": 1}',
    ]


KIND = Kind("records", samples, mutate, read, may_differ)

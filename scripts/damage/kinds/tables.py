"""CSV, TSV and plain text files of several sources, plain and in gzip."""

import csv
import gzip
import io
import random
import zlib
from collections.abc import Callable, Sequence

from scripts.damage.kinds import mutations
from scripts.damage.kinds.kind import Files, Kind
from scripts.damage.kinds.records import read

_TABLES: tuple[tuple[tuple[str, ...], list[tuple[str, ...]]], ...] = (
    (("question", "answer"), [(f"{i} + 1?", f'It is "{i + 1}",\nsurely é') for i in range(6)]),
    (("prompt", "chosen", "rejected", "id"), [("Hi", "Hello", f"What {i}?", str(i)) for i in range(5)]),
    (("instruction", "input", "output", "system"), [(f"Add {i}.", "", f"{i + 1}", "Be brief.") for i in range(5)]),
    (("text",), [(f"Line {i}.\r\nMore \u2028",) for i in range(4)]),
)
_TEXTS = ("One.\nMore of it.\n\nTwo \u2028é.\n \n\nThree.\n", "One.\r\nTwo.\r\nThree 😀.")
_SIGNS = ('"', ",", "\t", "\n", "\r", "\r\n", '""', "\0", "\ufeff", '"\n"', ",,,,", "\x1b[2J", "'", ";", "{", "[{")


def samples() -> list[Files]:
    """Returns each table as CSV and TSV, and texts."""
    forms: list[Files] = []
    for header, rows in _TABLES:
        for suffix, delimiter in ((".csv", ","), (".tsv", "\t")):
            content = _written([header, *rows], delimiter)
            forms += [{f"a{suffix}": content}, {f"a{suffix}.gz": gzip.compress(content, mtime=0)}]
    return [*forms, *({"a.txt": text.encode()} for text in _TEXTS)]


def mutate(rng: random.Random, files: Files) -> Files:
    """Returns the file with damaged bytes or signs, or a file that tries to fill the memory."""
    ((name, content),) = files.items()
    pack, text = _unpacked(content)
    change = rng.randrange(20)
    if change == 0:
        return {rng.choice((name, "a.csv", "a.tsv", "a.txt")): rng.choice(_bombs())()}
    if change == 1:
        return {rng.choice(("a.csv", "a.tsv", "a.txt", "a", "a.json", "a.parquet")): content}
    if change < 7:
        return {name: mutations.of_bytes(rng, content)}
    if change < 11:
        return {name: pack(mutations.of_bytes(rng, text))}
    damaged = text.decode()
    for _ in range(rng.randrange(1, 4)):
        begin = rng.randrange(len(damaged) + 1)
        end = min(begin + rng.randrange(4), len(damaged))
        damaged = damaged[:begin] + rng.choice(_SIGNS) + damaged[end:]
    return {name: pack(damaged.encode())}


def may_differ(sample: Files, damaged: Files) -> bool:
    """Returns True if no checksum of gzip fails: the formats themselves have none."""
    ((_, content),) = damaged.items()
    try:
        _unpacked(content)
    except (OSError, EOFError, zlib.error):
        return False
    return True


def _written(rows: Sequence[Sequence[str]], delimiter: str) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter).writerows(rows)
    return text.getvalue().encode()


def _unpacked(content: bytes) -> tuple[Callable[[bytes], bytes], bytes]:
    if content.startswith(b"\x1f\x8b"):
        return gzip.compress, gzip.decompress(content)
    return lambda text: text, content


def _bombs() -> list[Callable[[], bytes]]:
    """Returns small files that decompress to 40 MB, and texts that become large values."""
    parts = (b"a,b\n", b"\n", b"a\n\n", b'"', b",", b"\t", b'""', b"a,\n", b"\0", b" ")

    def zipped(part: bytes, begin: bytes) -> Callable[[], bytes]:
        return lambda: gzip.compress(begin + part * (40_000_000 // len(part)), 1)

    return [
        *(zipped(part, begin) for part in parts for begin in (b"", b"question,answer\n", b'question,answer\n"')),
        lambda: b"text\n" + b"a\n" * 400_000,
        lambda: b"question,answer\n" + b'"' + b"a\n" * 400_000,
        lambda: b",".join(b"%d" % i for i in range(900)) + b"\n" + (b"," * 899 + b"\n") * 5000,
        lambda: b"question,answer\n" + b"x" * 5_000_000 + b",y",
        lambda: b"a\n" * 400_000,
    ]


KIND = Kind("tables", samples, mutate, read, may_differ)

"""MMLU's questions: zip archives of small CSV files, and folders of them, damaged as archives and as tables."""

import functools
import io
import random
import zipfile
from pathlib import Path

from aligner_jax.evals.mmlu_questions import read_mmlu
from scripts.damage.kinds import mutations
from scripts.damage.kinds.kind import Files, Kind

_ROWS = 'Which bone,Hyoid,"Rib, floating",Ulna,Skull,A\n"Two\nlines?",a,b,"c ""d""",e,C\n' + "Q?,1,2,3,4,D\n" * 5


def _zipped(contents: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in contents.items():
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return buffer.getvalue()


_CONTENTS = {
    f"data/{split}/{subject}_{split}.csv": f"{subject},1,2,3,4,B\n{_ROWS}".encode()
    for split in ("dev", "test")
    for subject in ("anatomy", "virology", "world_religions")
}


_NAMES = (
    "/etc/test/a_test.csv", "../../test/b_test.csv", "data/test/", "test/\x1b[2J_test.csv", "C:\\test\\c_test.csv",
    "é/test/é_test.csv", "test/_test.csv", "more/test/anatomy_test.csv", "__MACOSX/data/test/._anatomy_test.csv",
    "test/" + "n" * 5000 + "_test.csv",
)  # fmt: skip


def samples() -> list[Files]:
    """Returns archives of both kinds, one without an enclosing folder, and a folder."""
    bare = {name.removeprefix("data/"): content for name, content in _CONTENTS.items()}
    return [
        {"mmlu.zip": _zipped(_CONTENTS)},
        {"mmlu.zip": _zipped(_CONTENTS, zipfile.ZIP_STORED)},
        {"mmlu.zip": _zipped(bare)},
        {f"mmlu/{name}": content for name, content in _CONTENTS.items()},
    ]


def mutate(rng: random.Random, files: Files) -> Files:
    """Returns the archive with damaged bytes, another directory, or a damaged table."""
    if "mmlu.zip" not in files:
        name = rng.choice(sorted(files))
        return {**files, name: _table(rng, files[name])}
    content = files["mmlu.zip"]
    change = rng.randrange(12)
    if change < 3:
        return {"mmlu.zip": mutations.of_bytes(rng, content)}
    if change < 7:
        # Local headers and the directory hold fields at fixed offsets after a signature.
        data = bytearray(content)
        mark, size = rng.choice(((b"PK\x01\x02", 46), (b"PK\x03\x04", 30), (b"PK\x05\x06", 22)))
        places = [i for i in range(len(data) - 4) if data[i : i + 4] == mark]
        at = rng.choice(places) + rng.randrange(size)
        number = rng.choice((0, 1, 255, 2**16 - 1, 2**31 - 1, 2**32 - 1, rng.randrange(2**16)))
        written = number.to_bytes(8, "little")[: rng.choice((1, 2, 4))]
        data[at : at + len(written)] = written
        return {"mmlu.zip": bytes(data[: len(content)])}
    contents = dict(_CONTENTS)
    name = rng.choice(sorted(contents))
    if change == 7:
        return {"mmlu.zip": _bomb(rng)}
    if change == 8:
        other = rng.choice(_NAMES)
        return {"mmlu.zip": _zipped({**contents, other: rng.choice((contents[name], b"", b"\0\5\x16\7"))})}
    contents[name] = _table(rng, contents[name])
    return {"mmlu.zip": _zipped(contents, rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)))}


def read(folder: Path) -> str:
    """Returns the questions of the split "test" with their lines."""
    path = next(folder.iterdir())
    questions = read_mmlu(str(path), "test")
    return repr(questions).replace(str(path), "")


def may_differ(sample: Files, damaged: Files) -> bool:
    """Returns True if no checksum fails and all files are there."""
    if "mmlu.zip" not in damaged:
        return True
    try:
        with zipfile.ZipFile(io.BytesIO(damaged["mmlu.zip"])) as archive:
            return archive.testzip() is None and len(archive.namelist()) >= len(_CONTENTS)
    except Exception:
        return False


def _table(rng: random.Random, content: bytes) -> bytes:
    change = rng.randrange(8)
    if change < 4:
        return mutations.of_bytes(rng, content)
    if change == 4:
        return content.replace(b",", rng.choice((b",,", b";", b'"', b"\0", b"\r", b"\n")), rng.choice((1, 3, -1)))
    if change == 5:
        return content + rng.choice(
            (b'"' + b"a" * 200_000, b"," * 3_000_000, b'"' + b"\n" * 3_000_000, b'"a\n",' * 900_000)
        )
    if change == 6:
        return b"a" * 9_000_000
    return rng.choice(
        (b"", b"\xef\xbb\xbf" + content, content.replace(b"\n", b"\r\n"), content.decode().encode("utf-16"))
    )


def _bomb(rng: random.Random) -> bytes:
    row = rng.choice((b"Q?,1,2,3,4,A\n", b"\n", b" ", b",", b'"a\n",'))
    method = rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2))
    return _repeated(row, rng.choice((7_000_000, 20_000_000)), rng.choice((1, 2)), method)


@functools.cache
def _repeated(row: bytes, size: int, count: int, method: int) -> bytes:
    files = {f"test/s{i}_test.csv": row * (size // len(row)) for i in range(count)}
    return _zipped({**_CONTENTS, **files}, method)


KIND = Kind("mmlu", samples, mutate, read, may_differ)

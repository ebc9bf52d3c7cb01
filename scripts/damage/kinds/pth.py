"""Adapters as torch saves them: a zip archive of a pickle and storages, damaged in opcodes, records and bytes."""

import io
import pickletools
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np

from scripts.damage.kinds.kind import Files, Kind, digest
from scripts.damage.kinds.mutations import of_bytes

FILE = "adapter.pth"
STORAGES = {"float32": "FloatStorage", "float16": "HalfStorage", "bfloat16": "BFloat16Storage"}
_NUMBERS = (0, 1, 2, 7, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1, 2**63 - 1, 2**64 - 1)

type Members = Sequence[tuple[str, bytes]]

# Offsets of a record's fields from its signature, and their lengths, in bytes.
_RECORDS = {
    b"PK\3\4": {4: 2, 6: 2, 8: 2, 10: 4, 14: 4, 18: 4, 22: 4, 26: 2, 28: 2, 30: 8},
    b"PK\1\2": {4: 4, 8: 2, 10: 2, 12: 4, 16: 4, 20: 4, 24: 4, 28: 2, 30: 2, 32: 2, 34: 2, 36: 2, 38: 4, 42: 4, 46: 8},
    b"PK\5\6": {4: 2, 6: 2, 8: 2, 10: 2, 12: 4, 16: 4, 20: 2},
    b"PK\6\6": {4: 8, 16: 4, 20: 4, 24: 8, 32: 8, 40: 8, 48: 8},
    b"PK\6\7": {4: 4, 8: 8, 16: 4},
    b"PK\7\x08": {4: 4, 8: 4, 12: 4},
}
_SNIPPETS = (
    b"\x85" * 5000, b"h\x01h\x01\x86q\x01" * 40, b"]q\x05" + b"h\x05a" * 50, b"(" * 3000, b"K\x01" * 3000,
    b"r\xff\xff\xff\x0f", b"r\xff\xff\xff\x7f", b"\x96" + struct.pack("<Q", 2**40), b"\x8e" + struct.pack("<Q", 2**40),
    b"X\xff\xff\xff\x7f", b"\x8b\xff\xff\xff\x7f", b"\x8a\xff" + b"\x7f" * 255, b"cos\nsystem\n",
    b"cbuiltins\nbytearray\n",
    b"cbuiltins\nprint\nX\x02\x00\x00\x00hi\x85R", b"}", b"]", b")", b"0", b"1", b"2", b"l", b"d", b"\x8f", b"\x90",
    b"\x91", b"\x81", b"\x92", b"\x93", b"I99999999999999999999\n", b"L" + b"9" * 5000 + b"L\n", b"F1e999\n", b"Vabc\n",
    b"G" + struct.pack(">d", float("nan")), b"ccollections\nOrderedDict\n)R", b"\x95" + struct.pack("<Q", 2**62), b".",
    b"\x80\x05", b"\x80\xff", b"N", b"\x88", b"\x89", b"b", b"s", b"u", b"t", b"R", b"Q", b"\x94",
    b"P0\n", b"p0\n", b"g0\n",
)  # fmt: skip


def tensors_of(kind: str) -> dict[str, np.ndarray]:
    """Returns the tensors of a small adapter: an Aligner, or a LLaMA-Adapter without shared tokens."""
    rng = np.random.default_rng(len(kind))
    dtype = {"aligner": ml_dtypes.bfloat16, "half": np.float16}.get(kind, np.float32)
    shared, tensors = rng.standard_normal((2, 8)).astype(dtype), {}
    if kind != "llama_adapter":
        tensors["global_value_embedding.weight"] = shared
    for layer in (2, 3, 4):
        attention = f"transformer.h.{layer}.attn."
        tensors[attention + "gating_factor"] = rng.standard_normal((1, 1, 4, 1)).astype(dtype)
        own = shared if kind == "aligner" else rng.standard_normal((2, 8)).astype(dtype)
        if kind != "half":
            tensors[attention + "adapter_wte.weight"] = own
    return tensors


def pickled(tensors: Mapping[str, np.ndarray], *, framed: bool = False) -> bytes:
    """Returns the pickle of a state dict: a dict in protocol 2, or a module's state dict in protocol 4."""
    memo: dict[str, int] = {}

    def kept(key: str, made: bytes) -> bytes:
        if key in memo:
            return b"h" + bytes([memo[key]]) if memo[key] < 256 else b"j" + struct.pack("<I", memo[key])
        number = memo[key] = len(memo)
        if framed:
            return made + b"\x94"
        return made + (b"q" + bytes([number]) if number < 256 else b"r" + struct.pack("<I", number))

    def text(value: str) -> bytes:
        data = value.encode()
        head = b"\x8c" + bytes([len(data)]) if framed else b"X" + struct.pack("<I", len(data))
        return kept(f"text {value}", head + data)

    def name(module: str, what: str) -> bytes:
        if framed:
            return kept(f"name {what}", text(module) + text(what) + b"\x93")
        return kept(f"name {what}", f"c{module}\n{what}\n".encode())

    def number(value: int) -> bytes:
        if value < 256:
            return b"K" + bytes([value])
        return b"M" + struct.pack("<H", value) if value < 2**16 else b"J" + struct.pack("<i", value)

    def numbers(key: str, values: Sequence[int]) -> bytes:
        inner = b"".join(map(number, values))
        made = inner + bytes([0x84 + len(values)]) if 0 < len(values) < 4 else b"(" + inner + b"t"
        return kept(key, made if values else b")")

    def ordered(key: str) -> bytes:
        return kept(key, name("collections", "OrderedDict") + b")R")

    content = b"\x80\x04\x95" + struct.pack("<Q", 0) if framed else b"\x80\x02"
    content += (ordered("state") if framed else kept("state", b"}")) + b"("
    for index, (key, tensor) in enumerate(tensors.items()):
        strides = [stride // tensor.itemsize for stride in np.empty(tensor.shape, tensor.dtype).strides]
        # In the order of writing: protocol 4's memo opcodes number their entries implicitly.
        content += text(key) + name("torch._utils", "_rebuild_tensor_v2") + b"("
        storage = b"(" + text("storage") + name("torch", STORAGES[tensor.dtype.name]) + text(str(index)) + text("cpu")
        content += kept(f"storage {index}", storage + number(tensor.size) + b"t") + b"Q" + number(0)
        content += numbers(f"shape {index}", tensor.shape) + numbers(f"strides {index}", strides) + b"\x89"
        content += kept(f"arguments {index}", ordered(f"hooks {index}") + b"t")
        content += kept(f"tensor {index}", b"R")
    content += b"u"
    if framed:
        content += b"}" + text("_metadata") + b"}" + text("version") + b"K\x01ssb"
    return content + b"."


def members_of(tensors: Mapping[str, np.ndarray], folder: str = "archive", **options: bool) -> Members:
    """Returns the members of a torch file in torch's order."""
    storages = [(f"{folder}/data/{i}", tensor.tobytes()) for i, tensor in enumerate(tensors.values())]
    order, version = (f"{folder}/byteorder", b"little"), (f"{folder}/version", b"3\n")
    return [(f"{folder}/data.pkl", pickled(tensors, **options)), order, *storages, version]


def archived(members: Members, *, like_torch: bool = True) -> bytes:
    """Returns an archive of stored members, plain or as torch writes it: trailing sizes, padding, zip64 ends."""
    content, directory, entries = bytearray(), bytearray(), len(members)
    for name, data in members:
        encoded, crc32, offset = name.encode(errors="surrogateescape"), zlib.crc32(data), len(content)
        sizes = (crc32, len(data), len(data))
        flags = 0x808 if like_torch else 0
        padding = -(offset + 30 + len(encoded) + 4) % 64
        extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding if like_torch else b""
        content += struct.pack("<4s5H3L2H", b"PK\3\4", 0, flags, 0, 0, 0, *((0, 0, 0) if like_torch else sizes),
                               len(encoded), len(extra)) + encoded + extra + data  # fmt: skip
        if like_torch:
            content += struct.pack("<4s3L", b"PK\7\x08", *sizes)
        directory += struct.pack("<4s6H3L5H2L", b"PK\1\2", 0, 0, flags, 0, 0, 0, *sizes, len(encoded), 0, 0, 0, 0, 0,
                                 offset) + encoded  # fmt: skip
    start, end = len(content), len(content) + len(directory)
    content += directory
    if like_torch:
        content += struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 798, 45, 0, 0, entries, entries, len(directory), start)
        content += struct.pack("<4sLQL", b"PK\6\7", 0, end, 1)
    content += struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, entries, entries, len(directory), start, 0)
    return bytes(content)


def opened(content: bytes) -> Members:
    """Returns the members of an undamaged archive."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return [(info.filename, archive.read(info)) for info in archive.infolist()]


def mutated(rng: random.Random, content: bytes) -> bytes:
    """Returns a damaged copy of a torch file."""
    how = rng.choice(
        (of_bytes, _of_records, _of_opcodes, _of_opcodes, _of_opcodes, _of_members, _of_members, _of_storage)
    )
    return how(rng, content)


def whole(content: bytes) -> Members | None:
    """Returns the members of an archive whose headers and checksums Python's zipfile accepts, else None."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return None if archive.testzip() else [(name, archive.read(name)) for name in archive.namelist()]
    except Exception:
        return None


def may_differ(sample: bytes, damaged: bytes) -> bool:
    """Returns True if the damaged file is a valid archive of other content, which somebody might have saved."""
    members = whole(damaged)
    return members is not None and dict(members) != dict(opened(sample))


def _of_records(rng: random.Random, content: bytes) -> bytes:
    """Changes one to three fields of the archive's headers and end records."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 3))):
        signature = rng.choice([mark for mark in _RECORDS if mark in content])
        places = [at for at in range(len(content)) if content.startswith(signature, at)]
        at, (offset, length) = rng.choice(places), rng.choice(list(_RECORDS[signature].items()))
        old = int.from_bytes(data[at + offset : at + offset + length], "little")
        near = (old + 1, old - 1, old ^ 1 << rng.randrange(8 * length), rng.choice(places), len(content))
        number = rng.choice((*_NUMBERS, *near, *near)) % 2 ** (8 * length)
        data[at + offset : at + offset + length] = number.to_bytes(length, "little")
    return bytes(data)


def _of_storage(rng: random.Random, content: bytes) -> bytes:
    """Flips a bit of a storage without changing its checksum."""
    name, data = rng.choice([member for member in opened(content) if "/data/" in member[0]])
    at = content.index(data, content.index(name.encode())) + rng.randrange(len(data))
    return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]


def _of_members(rng: random.Random, content: bytes) -> bytes:
    """Changes, removes, duplicates, renames or moves a member; checksums match the content."""
    members = list(opened(content))
    at = rng.randrange(len(members))
    name, data = members[at]
    change = rng.randrange(10)
    if change == 0:
        del members[at]
    elif change == 1:
        members.insert(rng.randrange(len(members)), (name, of_bytes(rng, data)))
    elif change == 2:
        other = rng.choice(members)[0]
        folder = name.partition("/")[0]
        names = (
            other, name.upper(), f"x{name}", f"{folder}/data/99", "", "/", f"../{name}", f"\udcff{name}", name * 400,
            f"{folder}/constants.pkl", "data.pkl", "other/data.pkl", f"{folder}/a/data.pkl", "\x1b[2J",
        )  # fmt: skip
        members[at] = (rng.choice(names), data)
    elif change == 3:
        rng.shuffle(members)
    elif change == 4:
        more = (("byteorder", b"big"), ("byteorder", b"l" * 10**5), ("x/data.pkl", b"."), ("data.pkl", data))
        last, extra = rng.choice(more)
        members.append((f"{name.partition('/')[0]}/{last}", extra))
    elif change == 5:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for number, (each, held) in enumerate(members):
                how = rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)) if number == at else 0
                archive.writestr(each, held * rng.choice((1, 10**3)) if number == at else held, how)
        return buffer.getvalue()
    elif change == 6:
        number = np.frombuffer(data, np.uint8).copy()
        number[-2:] = rng.choice(((0xFF, 0x7F), (0xFF, 0xFF), (0x80, 0x7F), (0x00, 0x7C)))
        members[at] = (name, number.tobytes())
    else:
        members[at] = (name, of_bytes(rng, data))
    if change < 5 and rng.random() < 0.1:
        members = members * rng.choice((2, 30))
    return archived(members, like_torch=rng.random() < 0.5)


def _of_opcodes(rng: random.Random, content: bytes) -> bytes:
    """Changes, moves, removes or adds one to three opcodes of the pickle."""
    members = list(opened(content))
    at = next(i for i, (name, _) in enumerate(members) if name.endswith("data.pkl"))
    data = members[at][1]
    starts = [start for _, _, start in pickletools.genops(data)]
    opcodes = [
        data[start:stop] for start, stop in zip(starts, [*starts[1:], len(data)], strict=True) if start is not None
    ]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        place = rng.randrange(len(opcodes) or 1)
        changes: list[Callable[[], object]] = [
            lambda p=place: opcodes.pop(p),
            lambda p=place: opcodes.insert(p, rng.choice(opcodes)),
            lambda p=place: opcodes.__setitem__(p, rng.choice(opcodes)),
            lambda p=place: opcodes.insert(p, rng.choice(_SNIPPETS)),
            lambda p=place: opcodes.__setitem__(p, rng.choice(_SNIPPETS)),
            lambda p=place: opcodes.insert(p, bytes([rng.randrange(256)])),
            lambda p=place: opcodes.__setitem__(p, _argument(rng, opcodes[p])),
            lambda p=place: opcodes.__setitem__(p, _argument(rng, opcodes[p])),
            lambda p=place: opcodes.__setitem__(
                slice(p, p + rng.randrange(30)), opcodes[p : p + 30] * rng.choice((0, 2))
            ),
        ]
        if opcodes:
            rng.choice(changes)()
    members[at] = (members[at][0], b"".join(opcodes))
    return archived(members, like_torch=rng.random() < 0.5)


def _argument(rng: random.Random, opcode: bytes) -> bytes:
    code = opcode[:1]
    if code in b"KqhM":
        return code + rng.randrange(256 ** (len(opcode) - 1)).to_bytes(len(opcode) - 1, "little")
    if code == b"J":
        return code + struct.pack("<i", rng.choice((-1, 0, 1, 2**31 - 1, -(2**31), rng.randrange(100))))
    if code == b"X":
        layers = [f"transformer.h.{layer}.attn.gating_factor" for layer in ("02", "100000000", "5", "\u0664")]
        others = ("", "0", "1", "x" * 5000, "\x1b", "storage", "cpu", *layers)
        text = rng.choice(others).encode()
        return code + struct.pack("<I", len(text)) + text
    return of_bytes(rng, opcode)


def _samples() -> list[Files]:
    return [
        {FILE: archived(members_of(tensors_of("aligner"), "epoch-8.00"))},
        {FILE: archived(members_of(tensors_of("llama_adapter"), framed=True))},
        {FILE: archived(members_of(tensors_of("half")), like_torch=False)},
    ]


def _read(folder: Path) -> str:

    import aligner_jax as aj

    adapter = aj.load_adapter(folder / FILE)
    arrays = {name: (np.asarray(x).shape, np.asarray(x)) for name, x in sorted(adapter.trainable.items())}
    told = [part for name, (shape, array) in arrays.items() for part in (name, shape, array)]
    return digest(adapter.method, adapter.options.as_dict(), *told)


KIND = Kind(
    name="pth",
    samples=_samples,
    mutate=lambda rng, files: {FILE: mutated(rng, files[FILE])},
    read=_read,
    may_differ=lambda sample, damaged: may_differ(sample[FILE], damaged[FILE]),
)

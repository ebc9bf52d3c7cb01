"""Archives of torch files: every byte has one meaning or is refused; checksums in any order of reading."""

import struct
import zipfile
from pathlib import Path

import numpy as np
import places
import pytest
from torch_files import write_torch_file

from aligner_jax.errors import InputError
from aligner_jax.weights import torch_zip
from aligner_jax.weights.torch_file import read_torch_tensors
from aligner_jax.weights.torch_zip import Checksum, Member, read_archive, read_member

GOLDEN = places.GOLDENS / "released.pth"
TENSORS = {"a": np.arange(24, dtype=np.float32).reshape(6, 4), "b": np.arange(5).astype(np.float16)}


def of_torch(path: Path) -> Path:
    """Returns a copy of torch's archive: sizes after each member, padding, and zip64 ends."""
    path.write_bytes(GOLDEN.read_bytes())
    return path


def of_python(path: Path) -> Path:
    return write_torch_file(path, TENSORS)


@pytest.mark.parametrize("written", [of_torch, of_python])
def test_members_are_where_zipfile_finds_them(tmp_path: Path, written):
    path = written(tmp_path / "a.pth")
    members = read_archive(path)
    with zipfile.ZipFile(path) as archive:
        assert members.keys() == set(archive.namelist())
        for name, member in members.items():
            assert read_member(member, 2**20) == archive.read(name)


@pytest.mark.parametrize("written", [of_torch, of_python])
def test_no_changed_byte_is_read_as_other_numbers(tmp_path: Path, written):
    path = written(tmp_path / "a.pth")
    whole, expected, refused = path.read_bytes(), read_torch_tensors(path), 0
    for at in range(0, len(whole), 1 if len(whole) < 2000 else 3):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at * 5 % 8]) + whole[at + 1 :])
        try:
            found = read_torch_tensors(path)
        except InputError:
            refused += 1
            continue
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert (found[name].shape, found[name].tobytes()) == (tensor.shape, tensor.tobytes()), at
    assert refused > 100


def entry_of(name: str):
    """Returns a function from an archive's bytes to the offset of the directory's entry of a member."""
    return lambda data: data.index(name.encode(), data.index(b"PK\1\2")) - 46


def header_of(name: str):
    return lambda data: data.index(name.encode()) - 30


def end(data: bytes) -> int:
    return data.index(b"PK\5\6")


VERSION, STORAGE = "archive/version", "archive/data/0"


@pytest.mark.parametrize(
    ("place", "offset", "value", "sentence"),
    [
        (entry_of(VERSION), 10, struct.pack("<H", 99), "its member archive/version is compressed"),
        (entry_of(VERSION), 8, b"\1", "its member archive/version is encrypted"),
        (entry_of(VERSION), 8, b"\x20", "its member archive/version has flags that torch never writes"),
        (entry_of(VERSION), 34, b"\1", "its member archive/version has flags that torch never writes"),
        (entry_of(VERSION), 46, b"\x80", r"it has a member \\x80rchive/version, a name that is not UTF-8"),
        (header_of(VERSION), 30, b"\x80", "its directory and the header of its member archive/version differ"),
        (header_of(STORAGE), 26, b"\x1e", "its directory and the header of its member archive/data/0 differ"),
        (header_of(STORAGE), 8, b"\x08", "its directory and the header of its member archive/data/0 differ"),
        (header_of(STORAGE), 14, b"\0\0\0\0", "its directory and the header of its member archive/data/0 differ"),
        (header_of(STORAGE), 0, b"PK\1\2", "its member archive/data/0 is not where its directory says"),
        (entry_of(STORAGE), 42, b"\xfe\xff\xff\xff", "its member archive/data/0 is not where its directory says"),
        (entry_of(STORAGE), 20, struct.pack("<2L", *[2**32 - 2] * 2), "the header of its member archive/data/0 differ"),
        (entry_of(STORAGE), 20, struct.pack("<2L", *[2**32 - 1] * 2), "directory has an entry without its sizes"),
        (entry_of(STORAGE), 46 + 13, b"1", "it has two members archive/data/1|header of its member archive/data/1"),
        (entry_of(STORAGE), 32, b"\xff\xff", "directory ends inside an entry"),
        (entry_of(STORAGE), 28, b"\xff\x7f", "directory ends inside an entry"),
        (entry_of(STORAGE), 0, b"PK\1\3", "directory has no entry at its byte"),
        (end, 8, b"\x03\0\x03\0", "directory is longer than its entries"),
        (end, 10, b"\x03", "directory is not where its end says"),
        (end, 4, b"\1", "directory is not where its end says"),
        (end, 16, b"\0\0\0\0", "directory is not where its end says"),
        (end, 8, b"\xff\xff\xff\xff", "directory is said to have 65,535 members"),
        (end, 0, b"PK\5\5", "it begins as an archive, but does not end as one"),
    ],
)
def test_an_archive_that_is_not_torchs_is_refused(tmp_path: Path, place, offset: int, value: bytes, sentence: str):
    path = of_python(tmp_path / "a.pth")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(VERSION, "3\n")
    data = bytearray(path.read_bytes())
    at = place(bytes(data)) + offset
    assert data[at : at + len(value)] != value
    data[at : at + len(value)] = value
    path.write_bytes(data)
    with pytest.raises(InputError, match=rf"a\.pth.*({sentence})"):
        read_archive(path)


@pytest.mark.parametrize(
    ("mark", "offset", "value", "sentence"),
    [
        (b"PK\6\7", 8, b"\0", "does not end as it says"),
        (b"PK\6\6", 0, b"PK\6\5", "does not end as it says"),
        (b"PK\6\6", 48, b"\1", "says twice where it is, and not the same"),
        (b"PK\6\6", 16, b"\1", "is not where its end says|says twice"),
        (b"PK\5\6", 8, b"\1\0\1\0", "says twice where it is, and not the same"),
    ],
)
def test_ends_of_64_bits_must_agree(tmp_path: Path, mark: bytes, offset: int, value: bytes, sentence: str):
    path = of_torch(tmp_path / "a.pth")
    data = bytearray(path.read_bytes())
    at = data.index(mark) + offset
    assert data[at : at + len(value)] != value
    data[at : at + len(value)] = value
    path.write_bytes(data)
    with pytest.raises(InputError, match=f"archive's directory ({sentence})"):
        read_archive(path)


def test_numbers_beyond_32_bits_come_from_the_extra_field(tmp_path: Path):
    """Members of large bases lie at 0xFFFFFFFF or later; here the offset in the extra field is a small one."""
    path = of_python(tmp_path / "a.pth")
    data = path.read_bytes()
    at = entry_of(STORAGE)(data)
    (offset,) = struct.unpack_from("<L", data, at + 42)
    extra = struct.pack("<2HQ", 1, 8, offset)
    entry = bytearray(data[at : at + 46])
    entry[30:32], entry[42:46] = struct.pack("<H", len(extra)), b"\xff" * 4
    name_end = at + 46 + len(STORAGE)
    longer = bytearray(data[:at] + entry + data[at + 46 : name_end] + extra + data[name_end:])
    size_at = len(longer) - 22 + 12
    longer[size_at : size_at + 4] = struct.pack("<L", struct.unpack_from("<L", longer, size_at)[0] + len(extra))
    path.write_bytes(longer)
    assert read_member(read_archive(path)[STORAGE], 1000) == TENSORS["a"].tobytes()


def test_members_may_not_overlap(tmp_path: Path):
    """A member's header inside another's bytes would give the same bytes two meanings."""
    header = b"PK\3\4" + struct.pack("<5H3L2H", 20, 0, 0, 0, 0, 0, 0, 0, len(VERSION), 0) + VERSION.encode()
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(STORAGE, header)
        archive.writestr(VERSION, b"")
    data = bytearray(path.read_bytes())
    at = entry_of(VERSION)(bytes(data)) + 42
    data[at : at + 4] = struct.pack("<L", data.index(header))
    path.write_bytes(data)
    with pytest.raises(InputError, match="directory has members that overlap at byte"):
        read_archive(path)


@pytest.fixture
def member(tmp_path: Path) -> Member:
    content = np.random.default_rng(0).bytes(2**20 + 1000)
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("archive/data/0", content)
    return read_archive(tmp_path / "a.pth")["archive/data/0"]


def damage(member: Member, at: int) -> None:
    data = bytearray(member.file.read_bytes())
    data[member.start + at] ^= 4
    member.file.write_bytes(data)


def content_of(member: Member) -> bytes:
    return member.file.read_bytes()[member.start : member.start + member.size]


@pytest.mark.parametrize(
    "parts",
    [
        [(0, 2**20 + 1000)],
        [(0, 500_000), (500_000, 2**20 + 1000)],
        [(500_000, 2**20 + 1000), (0, 500_000)],
        [(0, 700_000), (300_000, 800_000), (10, 20)],
        [(2**20, 2**20 + 1)],
        [],
    ],
)
@pytest.mark.parametrize("threaded", [True, False])
def test_a_checksum_is_of_all_bytes_whatever_is_read_of_them(member, parts, threaded: bool, monkeypatch):
    if not threaded:
        monkeypatch.setattr(torch_zip, "_WORTH_A_THREAD", 2**40)
    for at in (None, 5, 400_000, 2**20 + 999):
        if at is not None:
            damage(member, at)
        checksum, content = Checksum(member), content_of(member)
        for start, stop in parts:
            checksum.take(start, content[start:stop])
        if at is None:
            checksum.finish()
            continue
        with pytest.raises(InputError, match=r"a\.pth is damaged: its member archive/data/0 does not match its"):
            checksum.finish()
        damage(member, at)


def test_what_is_read_in_order_is_not_read_again(member, monkeypatch):
    content, checksum = content_of(member), Checksum(member)
    monkeypatch.setattr(torch_zip, "open_file", None)
    for start in range(0, len(content), 300_000):
        checksum.take(start, content[start : start + 300_000])
    checksum.finish()
    with pytest.raises(TypeError):
        Checksum(member).finish()


def test_a_check_that_another_process_makes_is_left_out(member, monkeypatch):
    damage(member, 7)
    monkeypatch.setattr(torch_zip, "open_file", None)
    checksum = Checksum(member)
    checksum.take(0, content_of(member)[:1000])
    checksum.leave_out()
    checksum.take(2000, content_of(member)[2000:3000])
    checksum.finish()


def test_a_member_that_is_too_large_is_not_read(member, monkeypatch):
    monkeypatch.setattr(torch_zip, "open_file", None)
    with pytest.raises(InputError, match="its member archive/data/0 has 1,049,576 bytes, of at most 1,000"):
        read_member(member, 1000)


def test_a_file_that_was_saved_without_checksums_says_so(member):
    with pytest.raises(InputError, match="which is 0: if it was saved without checksums, save it anew with them"):
        read_member(member._replace(crc32=0), 2**30)


def test_a_member_that_the_file_lost_meanwhile(member):
    member.file.write_bytes(member.file.read_bytes()[:-1000])
    with pytest.raises(InputError, match="ends inside its member archive/data/0; the file is cut short"):
        read_member(member, 2**30)

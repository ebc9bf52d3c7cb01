"""Reads the zip archives that `torch.save` writes: the offsets of their members, and checksums of the members read.

Torch stores members uncompressed, so a storage is a range of bytes of the file. Everything else that a zip archive can
be (compressed, encrypted, split, preceded by other data) is refused for all members, used or not. The archive's
directory and the header before each member must agree, and members must not overlap, so that no byte has two meanings.
Source: PKWARE's APPNOTE.TXT, 4.3 and 4.5.3.
"""

import itertools
import os
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from aligner_jax.errors import InputError
from aligner_jax.files.content import MEBIBYTE, open_file

MAX_MEMBERS = 50_000
_MAX_NAME = 1024
_PIECE, _WORTH_A_THREAD = MEBIBYTE, MEBIBYTE // 8
_END, _END64, _LOCATOR64 = struct.Struct("<4s4H2LH"), struct.Struct("<4sQ2H2L4Q"), struct.Struct("<4sLQL")
_ENTRY, _HEADER = struct.Struct("<4s6H3L5H2L"), struct.Struct("<4s5H3L2H")
_IN_EXTRA = 0xFFFFFFFF
_SIZES_FOLLOW, _UTF8 = 1 << 3, 1 << 11


class Member(NamedTuple):
    """A member of an archive: `size` bytes at `start` in `file`."""

    file: Path
    name: str
    start: int
    size: int
    crc32: int


def read_archive(path: Path) -> dict[str, Member]:
    """Returns the members of an archive by name.

    Raises:
      InputError: the file cannot be read, is not an archive, is truncated or damaged, or is not as torch writes it.
    """
    with open_file(path) as file:
        try:
            return _members(path, file)
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}") from None


def read_member(member: Member, most: int) -> bytes:
    """Returns the content of a member of at most `most` bytes.

    Raises:
      InputError: the member is larger, cannot be read, or does not match its checksum.
    """
    if member.size > most:
        raise InputError(f"{member.file}: its member {member.name} has {member.size:,} bytes, of at most {most:,}")
    content = b"".join(_pieces(member, 0, member.size))
    checksum = Checksum(member)
    checksum.take(0, content)
    checksum.finish()
    return content


class Checksum:
    """The CRC-32 of a member, computed from the parts of it that are read. `finish` compares it.

    Parts may come in any order. Those that come in order are not read again. A thread adds them to the checksum while
    the caller decodes them, so the check takes no time if there is a second core. If a part leaves a gap after the
    bytes before it, the gap is read for the checksum alone, and `finish` reads the rest. So a member is read once more
    at most. Not thread-safe.
    """

    def __init__(self, member: Member) -> None:
        self.member = member
        self._taken, self._crc32 = 0, 0
        self._running: threading.Thread | None = None

    def take(self, start: int, data: bytes | memoryview) -> None:
        """Adds bytes of the member that were read at offset `start`. They must not change afterwards.

        Raises:
          InputError: the file cannot be read.
        """
        for piece in _pieces(self.member, self._taken, start):
            self._add(piece)
        if start <= self._taken < start + len(data):
            self._add(memoryview(data)[self._taken - start :])

    def finish(self) -> None:
        """Reads the bytes that were not taken, and compares the checksum.

        Raises:
          InputError: the member does not match its checksum, or the file cannot be read.
        """
        self.take(self.member.size, b"")
        self._wait()
        if self._crc32 != self.member.crc32:
            # torch.serialization.set_crc32_options(False) writes zeros.
            without = " (which is 0: if it was saved without checksums, save it anew with them)"
            raise InputError(
                f"{self.member.file} is damaged: its member {self.member.name} does not match its checksum"
                f"{'' if self.member.crc32 else without}"
            )

    def leave_out(self) -> None:
        """Ends the check without a comparison, which another process makes."""
        self._wait()
        self._taken, self._crc32 = self.member.size, self.member.crc32

    def _add(self, data: bytes | memoryview) -> None:
        self._wait()
        self._taken += len(data)
        if len(data) < _WORTH_A_THREAD:
            self._sum(data)
        else:
            self._running = threading.Thread(target=self._sum, args=(data,))
            self._running.start()

    def _sum(self, data: bytes | memoryview) -> None:
        self._crc32 = zlib.crc32(data, self._crc32)

    def _wait(self) -> None:
        if self._running is not None:
            self._running.join()
            self._running = None


def _pieces(member: Member, start: int, stop: int) -> Iterator[bytes]:
    """Yields bytes start to stop of a member, a mebibyte at a time. Raises InputError if the file ends early."""
    if start >= stop:
        return
    with open_file(member.file) as file:
        try:
            file.seek(member.start + start)
            for at in range(start, stop, _PIECE):
                piece = file.read(min(_PIECE, stop - at))
                if len(piece) != min(_PIECE, stop - at):
                    raise InputError(f"{member.file} ends inside its member {member.name}; the file is cut short")
                yield piece
        except OSError as error:
            raise InputError(f"{member.file} cannot be read: {error.strerror}") from None


def _members(path: Path, file: BinaryIO) -> dict[str, Member]:
    size = os.fstat(file.fileno()).st_size
    count, start, stop = _directory(path, file, size)
    file.seek(start)
    directory = file.read(stop - start)
    members, headers, at = {}, [], 0
    for _ in range(count):
        entry, at = _entry(path, directory, at)
        member = _checked(path, file, entry, start)
        if members.setdefault(member.name, member) is not member:
            raise InputError(f"{path} is damaged: it has two members {member.name}")
        headers.append((entry.header, member.start + member.size))
    if at != len(directory):
        raise _damaged(path, "is longer than its entries")
    headers = [*sorted(headers), (start, start)]
    for (_, end), (following, _) in itertools.pairwise(headers):
        if end > following:
            raise _damaged(path, f"has members that overlap at byte {following}")
    return members


def _directory(path: Path, file: BinaryIO, size: int) -> tuple[int, int, int]:
    """Returns the number of entries in the directory, and the offsets of its start and end."""
    tail_size = _END64.size + _LOCATOR64.size + _END.size
    file.seek(max(0, size - tail_size))
    tail = file.read(tail_size)
    end = tail[-_END.size :]
    if len(end) != _END.size or end[:4] != b"PK\5\6":
        raise InputError(f"{path} is not a torch file: {_beginning(file)}")
    _, *disks, entries, count, length, start, comment = _END.unpack(end)
    stop = size - _END.size
    locator = tail[-_END.size - _LOCATOR64.size : -_END.size]
    if locator[:4] == b"PK\6\7":
        stop = size - tail_size
        if len(tail) != tail_size or tail[:4] != b"PK\6\6" or _LOCATOR64.unpack(locator)[1:3] != (0, stop):
            raise _damaged(path, "does not end as it says")
        shorts = (entries, count, length, start)
        _, _, _, _, *disks64, entries, count, length, start = _END64.unpack(tail[: _END64.size])
        disks += disks64
        longs = (entries, count, length, start)
        most = (0xFFFF, 0xFFFF, _IN_EXTRA, _IN_EXTRA)
        if any(short not in (long, limit) for short, long, limit in zip(shorts, longs, most, strict=True)):
            raise _damaged(path, "says twice where it is, and not the same")
    if any(disks) or entries != count or comment or start + length != stop:
        raise _damaged(path, "is not where its end says")
    if count > MAX_MEMBERS or count * _ENTRY.size > length:
        raise _damaged(path, f"is said to have {count:,} members, of at most {MAX_MEMBERS:,}")
    return count, start, stop


class _Entry(NamedTuple):
    name: bytes
    flags: int
    crc32: int
    size: int
    header: int


def _entry(path: Path, directory: bytes, at: int) -> tuple[_Entry, int]:
    """Returns the directory's entry at an offset, and the offset of the next one."""
    fixed = directory[at : at + _ENTRY.size]
    if len(fixed) != _ENTRY.size or fixed[:4] != b"PK\1\2":
        raise _damaged(path, f"has no entry at its byte {at}")
    _, _, _, flags, method, _, _, crc32, stored, size, name_size, extra_size, comment_size, disk, _, _, header = (
        _ENTRY.unpack(fixed)
    )
    at += _ENTRY.size
    name, extra = directory[at : at + name_size], directory[at + name_size : at + name_size + extra_size]
    at += name_size + extra_size + comment_size
    if at > len(directory):
        raise _damaged(path, "ends inside an entry")
    size, stored, header = _from_extra(path, extra, [size, stored, header])
    shown = name.decode(errors="backslashreplace")
    if flags & 1:
        raise InputError(f"{path}: its member {shown} is encrypted, as torch never writes it")
    if len(name) > _MAX_NAME:
        raise _damaged(path, f"has a name of {len(name):,} bytes")
    if method or stored != size:
        raise InputError(f"{path}: its member {shown} is compressed, as torch never writes it")
    if flags & ~(_SIZES_FOLLOW | _UTF8) or disk:
        raise InputError(f"{path} is damaged: its member {shown} has flags that torch never writes")
    return _Entry(name, flags, crc32, size, header), at


def _from_extra(path: Path, extra: bytes, values: list[int]) -> list[int]:
    """Returns the values. Those that do not fit into 32 bits come from the entry's extra field of kind 1 (zip64)."""
    if _IN_EXTRA not in values:
        return values
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        field = extra[at + 4 : at + 4 + length]
        if kind == 1:
            longs = [int.from_bytes(field[i : i + 8], "little") for i in range(0, len(field) - 7, 8)]
            if len(longs) < values.count(_IN_EXTRA):
                break
            return [longs.pop(0) if value == _IN_EXTRA else value for value in values]
        at += 4 + length
    raise _damaged(path, "has an entry without its sizes")


def _checked(path: Path, file: BinaryIO, entry: _Entry, directory: int) -> Member:
    """Returns the member of an entry, after comparing the entry with the header before the member."""
    try:
        name = entry.name.decode()
    except UnicodeDecodeError:
        shown = entry.name.decode(errors="backslashreplace")
        raise InputError(f"{path} is damaged: it has a member {shown}, a name that is not UTF-8") from None
    file.seek(min(entry.header, directory))
    header = file.read(_HEADER.size + len(entry.name))
    if len(header) != _HEADER.size + len(entry.name) or header[:4] != b"PK\3\4":
        raise InputError(f"{path} is damaged: its member {name} is not where its directory says")
    _, _, flags, method, _, _, crc32, stored, size, name_size, extra_size = _HEADER.unpack(header[: _HEADER.size])
    # If a member was written as a stream, its sizes and CRC follow its bytes, and are 0 in the header.
    later = {0} if flags & _SIZES_FOLLOW else set()
    same = (
        (flags, method, name_size, header[_HEADER.size :]) == (entry.flags, 0, len(entry.name), entry.name)
        and crc32 in {entry.crc32, *later}
        and {stored, size} <= {min(entry.size, _IN_EXTRA), _IN_EXTRA, *later}
    )
    if not same:
        raise InputError(f"{path} is damaged: its directory and the header of its member {name} differ")
    return Member(path, name, entry.header + _HEADER.size + name_size + extra_size, entry.size, entry.crc32)


def _damaged(path: Path, problem: str) -> InputError:
    return InputError(f"{path} is not a whole torch file: the archive's directory {problem}")


def _beginning(file: BinaryIO) -> str:
    file.seek(0)
    head = file.read(64)
    if not head:
        return "it is empty"
    if head[:1] == b"\x80":
        return "it is a pickle without an archive, as of torch before 1.6; save it anew with torch.save"
    if head[:2] == b"PK":
        return "it begins as an archive, but does not end as one: it is cut short, or something was added to it"
    return "it is text" if head.isascii() else "its first bytes are no zip archive's"

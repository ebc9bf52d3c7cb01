"""Files in a zip archive, read within the bounds of MMLU's."""

import lzma
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from aligner_jax.errors import InputError
from aligner_jax.files.content import MEBIBYTE, is_file, open_file

MOST_FILE = 8 * MEBIBYTE
"""Bytes of one file; MMLU's largest has 2 MB."""
_MOST_FILES, _MOST_RATIO = 10_000, 30
# Small rows take 30 times their text in memory.
_END = struct.Struct("<4s4H2LH")
_END_MAGIC, _LARGE_MAGIC = b"PK\x05\x06", b"PK\x06\x07"
# A file is damaged, cut short, encrypted, or packed in an unknown way.
_ERRORS = (
    OSError, EOFError, RuntimeError, ValueError, IndexError, OverflowError, MemoryError, struct.error,
    zipfile.BadZipFile, zlib.error, lzma.LZMAError,
)  # fmt: skip


def is_archive(path: Path) -> bool:
    """Returns True if a file ends as a zip archive does. Raises InputError where it cannot be read."""
    if not is_file(path):
        return False
    with open_file(path) as file:
        return _end(file) is not None


def read_archive(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Yields "archive/name" and content of the files of which `wanted` is true of the name.

    Nothing is unpacked into a file, so that a name may be any. Checksums of the contents are compared, and the names of
    all files with those in front of their contents, so that no damage of a name leaves a file out.

    Raises:
      InputError: the archive is damaged, or has more or larger files than MMLU's.
    """
    with open_file(path) as file:
        end = _end(file)
        # Before the directory is read, since a directory of a million names takes a gigabyte.
        if end is None or end[1] > _MOST_FILES or end[2] > MOST_FILE:
            raise InputError(f"{path} is no archive of at most {_MOST_FILES:,} files")
        size = file.seek(0, 2)
        try:
            with zipfile.ZipFile(file) as archive:
                held = archive.infolist()
                if len(held) != end[1]:
                    raise InputError(f"{path} is damaged: it should have {end[1]:,} files and has {len(held):,}")
                for info in held:
                    _check_header(archive, info, path)
                found = [info for info in held if _is_content(info.filename) and wanted(info.filename)]
                if sum(info.file_size for info in found) > MEBIBYTE + _MOST_RATIO * size:
                    raise InputError(f"{path} has {size:,} bytes, and its files far more than MMLU's could have")
                for info in found:
                    yield f"{path}/{info.filename}", _content(archive, info, path)
        except _ERRORS as error:
            raise InputError(f"{path} cannot be read: {_reason(error)}") from None


def _is_content(name: str) -> bool:
    """Returns False for what macOS puts beside each file."""
    return not name.startswith("__MACOSX/") and not name.rpartition("/")[2].startswith("._")


def _check_header(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> None:
    """Compares what stands before a file's content with the directory."""
    try:
        with archive.open(info):
            pass
    except _ERRORS as error:
        raise InputError(f"{path}/{info.filename} cannot be read: {_reason(error)}") from None


def _content(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> bytes:
    name = f"{path}/{info.filename}"
    if info.file_size > MOST_FILE:
        raise InputError(f"{name} has {info.file_size:,} bytes, and one of MMLU's files at most {MOST_FILE:,}")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InputError(f"{name} cannot be read: it is neither stored nor deflated")
    try:
        return archive.read(info)
    except _ERRORS as error:
        raise InputError(f"{name} cannot be read: {_reason(error)}") from None


def _end(file: BinaryIO) -> tuple[int, int, int] | None:
    """Position, number of files and size of the directory of an archive, by the record that ends it."""
    size = file.seek(0, 2)
    begin = max(size - _END.size - 2**16, 0)
    file.seek(begin)
    data = file.read()
    at = len(data) - _END.size
    # `zipfile` finds it so too.
    if at < 0 or data[at : at + 4] != _END_MAGIC or data[-2:] != b"\0\0":
        at = data.rfind(_END_MAGIC)
    if at < 0 or len(data) - at < _END.size:
        return None
    record = _END.unpack_from(data, at)
    # An archive of more than 65,535 files or 4 GiB says so in another record, which goes first.
    if data[max(at - 20, 0) : at][:4] == _LARGE_MAGIC:
        return begin + at, 2**32, 2**32
    return begin + at, record[4], record[5]


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__

"""Reads files of a zip archive, with size limits that suit MMLU's archive."""

import lzma
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from aligner_jax.errors import InputError
from aligner_jax.files.content import MEBIBYTE, is_file, open_file

MAX_FILE = 8 * MEBIBYTE
"""Size limit of one file, in bytes. MMLU's largest file has 2 MB."""
_MAX_FILES, _MAX_RATIO = 10_000, 30
# Small rows need 30 times the size of their text in memory.
_END = struct.Struct("<4s4H2LH")
_END_MAGIC, _LARGE_MAGIC = b"PK\x05\x06", b"PK\x06\x07"
# Errors of `zipfile` for files that are damaged, truncated, encrypted, or compressed by an unknown method.
_ERRORS = (
    OSError, EOFError, RuntimeError, ValueError, IndexError, OverflowError, MemoryError, struct.error,
    zipfile.BadZipFile, zlib.error, lzma.LZMAError,
)  # fmt: skip


def is_archive(path: Path) -> bool:
    """Returns True if a file has the end record of a zip archive. Raises InputError if it cannot be read."""
    if not is_file(path):
        return False
    with open_file(path) as file:
        return _end(file) is not None


def read_archive(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Yields "archive/name" and the content of every file whose name satisfies `wanted`.

    Nothing is unpacked to disk, so any name is safe. Checksums of the contents are verified. The names of all files are
    compared with those in their local headers, so that a damaged name cannot leave a file out.

    Raises:
      InputError: the archive is damaged, or has more or larger files than MMLU's could have.
    """
    with open_file(path) as file:
        end = _end(file)
        # Checked before the directory is read: a directory of a million names needs a gigabyte of memory.
        if end is None or end[1] > _MAX_FILES or end[2] > MAX_FILE:
            raise InputError(f"{path} is no archive of at most {_MAX_FILES:,} files")
        size = file.seek(0, 2)
        try:
            with zipfile.ZipFile(file) as archive:
                held = archive.infolist()
                if len(held) != end[1]:
                    raise InputError(f"{path} is damaged: it should have {end[1]:,} files and has {len(held):,}")
                for info in held:
                    _check_header(archive, info, path)
                found = [info for info in held if _is_content(info.filename) and wanted(info.filename)]
                if sum(info.file_size for info in found) > MEBIBYTE + _MAX_RATIO * size:
                    raise InputError(f"{path} has {size:,} bytes, and its files far more than MMLU's could have")
                for info in found:
                    yield f"{path}/{info.filename}", _content(archive, info, path)
        except _ERRORS as error:
            raise InputError(f"{path} cannot be read: {_reason(error)}") from None


def _is_content(name: str) -> bool:
    """Returns False for the metadata files that macOS adds."""
    return not name.startswith("__MACOSX/") and not name.rpartition("/")[2].startswith("._")


def _check_header(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> None:
    """Compares a file's local header with its entry in the directory."""
    try:
        with archive.open(info):
            pass
    except _ERRORS as error:
        raise InputError(f"{path}/{info.filename} cannot be read: {_reason(error)}") from None


def _content(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> bytes:
    name = f"{path}/{info.filename}"
    if info.file_size > MAX_FILE:
        raise InputError(f"{name} has {info.file_size:,} bytes, and one of MMLU's files at most {MAX_FILE:,}")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InputError(f"{name} cannot be read: it is neither stored nor deflated")
    try:
        return archive.read(info)
    except _ERRORS as error:
        raise InputError(f"{name} cannot be read: {_reason(error)}") from None


def _end(file: BinaryIO) -> tuple[int, int, int] | None:
    """Returns the offset of an archive's end record, its number of files and the size of its directory in bytes."""
    size = file.seek(0, 2)
    begin = max(size - _END.size - 2**16, 0)
    file.seek(begin)
    data = file.read()
    at = len(data) - _END.size
    # The same search as that of `zipfile`, so that both read the same record.
    if at < 0 or data[at : at + 4] != _END_MAGIC or data[-2:] != b"\0\0":
        at = data.rfind(_END_MAGIC)
    if at < 0 or len(data) - at < _END.size:
        return None
    record = _END.unpack_from(data, at)
    # An archive of more than 65,535 files or 4 GiB has a ZIP64 locator before its end record.
    if data[max(at - 20, 0) : at][:4] == _LARGE_MAGIC:
        return begin + at, 2**32, 2**32
    return begin + at, record[4], record[5]


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__

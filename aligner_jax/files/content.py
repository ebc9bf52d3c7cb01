"""Reads files within limits; refuses devices, pipes and endless files without reading them."""

import errno
import io
import os
import stat
from collections.abc import Buffer
from pathlib import Path
from typing import BinaryIO

from aligner_jax.errors import InputError

MEBIBYTE = 2**20
_BUFFER = 2**17


def open_file(path: str | Path) -> BinaryIO:
    """Opens a regular file for reading.

    Raises:
      InputError: there is no such file, it is a folder, a device or a pipe, or it cannot be read; the message names the
        reason. The file's own methods raise it too if a read fails later.
    """
    try:
        # O_NONBLOCK, since opening a pipe otherwise waits for a writer.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except (OSError, ValueError) as error:
        raise InputError(_why(path, error)) from None
    if not stat.S_ISREG(mode := os.fstat(handle).st_mode):
        os.close(handle)
        kind = "a folder" if stat.S_ISDIR(mode) else "a device or a pipe"
        raise InputError(f"{path} is {kind}, not a file")
    return io.BufferedReader(_File(handle, path), _BUFFER)


class _File(io.FileIO):
    """A file whose methods raise InputError."""

    def __init__(self, handle: int, path: str | Path) -> None:
        super().__init__(handle, "rb")
        self._path = path

    def readinto(self, buffer: Buffer) -> int:
        try:
            count = super().readinto(buffer)
        except OSError as error:
            raise InputError(_why(self._path, error)) from None
        if count is None:
            # Some files of /proc get their content later, like a pipe.
            raise InputError(f"{self._path} cannot be read: it has no content yet")
        return count

    def readall(self) -> bytes:
        content = bytearray(_BUFFER)
        pieces = []
        while count := self.readinto(content):
            pieces.append(bytes(content[:count]))
        return b"".join(pieces)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return super().seek(offset, whence)
        except OSError as error:
            raise InputError(_why(self._path, error)) from None


def read_bytes(path: str | Path, *, most: int = 64 * MEBIBYTE) -> bytes:
    """Returns the content of a regular file of at most `most` bytes.

    Raises:
      InputError: see `open_file`; or the file is larger.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise InputError(f"{path} has {size:,} bytes, but a file of its kind has at most {most:,}")
        content = file.read(min(size, most) + 1)
        # Some files of /proc have size 0 and are endless; one large read would allocate `most` bytes at once.
        while size < len(content) <= most and (more := file.read(MEBIBYTE)):
            content += more
    if len(content) > most:
        raise InputError(f"{path} has more than {most:,} bytes, which is the most that a file of its kind has")
    return content


def read_text(path: str | Path, *, most: int = 64 * MEBIBYTE) -> str:
    """Returns the UTF-8 text of a regular file of at most `most` bytes.

    Raises:
      InputError: see `read_bytes`; or the file is not UTF-8, with the first line that is not.
    """
    return decode_text(read_bytes(path, most=most), path)


def decode_text(content: bytes, path: str | Path) -> str:
    """Returns UTF-8 bytes as text, without a byte-order mark.

    Raises:
      InputError: the bytes are not UTF-8; the message names the line of `path`.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{line} is not UTF-8 text") from None


def is_file(path: str | Path) -> bool:
    """Returns True if there is a regular file at `path`.

    Raises:
      InputError: `path` is no valid path, or its folder cannot be entered.
    """
    return stat.S_ISREG(_mode(path))


def is_folder(path: str | Path) -> bool:
    """Returns True if there is a folder at `path`. Raises InputError as `is_file` does."""
    return stat.S_ISDIR(_mode(path))


def exists(path: str | Path) -> bool:
    """Returns True if there is anything at `path`. Raises InputError as `is_file` does."""
    return _mode(path) != 0


def _mode(path: str | Path) -> int:
    try:
        return os.stat(path).st_mode
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOENT, errno.ENOTDIR):
            return 0
        raise InputError(_why(path, error)) from None


def _why(path: str | Path, error: OSError | ValueError) -> str:
    if isinstance(error, FileNotFoundError):
        return f"there is no file {path}"
    # Python raises ValueError for a zero byte in a path.
    return f"{path} cannot be read: {error.strerror if isinstance(error, OSError) else error}"

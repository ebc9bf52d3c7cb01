"""Reads and decompresses data files in pieces, and refuses files that decompress to far more than text does."""

import contextlib
import lzma
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from aligner_jax.data.sources.formats import DamageError
from aligner_jax.files.content import MEBIBYTE, open_file

MAX_RECORD = 4 * MEBIBYTE
"""Maximum bytes of one record, row or line; about a million tokens."""
MAX_RATIO, FREE = 100, 16 * MEBIBYTE
"""A file may decompress to `FREE` bytes plus `MAX_RATIO` times its size.

Text compresses 3 to 30 times; files that are made to fill the memory, 200 to 10,000 times.
"""
_PIECE = MEBIBYTE

# Small, because zlib copies the rest of the piece at the end of every gzip member.
_GZIP_PIECE = 2**13
# Decompressing the output of `xz -9` takes 65 MiB.
_XZ_MEMORY = 128 * MEBIBYTE


def content_pieces(path: Path) -> Iterator[bytes]:
    """Yields a file's content in order, decompressed if it is gzip or xz.

    The compression is detected by the first bytes or by the suffix.

    Raises:
      InputError: the file cannot be read, is damaged or truncated, or exceeds the bound of `check_ratio`.
    """
    with open_file(path) as file:
        size, begin = os.fstat(file.fileno()).st_size, file.read(len(_XZ))
        file.seek(0)
        for magic, suffix, decompress in ((b"\x1f\x8b", ".gz", _gunzip), (_XZ, ".xz", _unxz)):
            if begin.startswith(magic) or (begin and path.suffix == suffix):
                with _errors_of(path):
                    yield from within_ratio(decompress(file), size, path)
                return
        with _errors_of(path):
            yield from iter(lambda: file.read(_PIECE), b"")


def within_ratio(pieces: Iterator[bytes], size: int, path: Path) -> Iterator[bytes]:
    """Yields the pieces of a file of `size` bytes. Raises InputError if they exceed the bound of `check_ratio`."""
    total = 0
    for piece in pieces:
        total += len(piece)
        check_ratio(total, size, path)
        yield piece


def check_ratio(total: int, size: int, path: Path) -> None:
    """Refuses files that are made to fill the memory.

    Args:
      total: decompressed bytes so far.
      size: size of the file, in bytes.
      path: path of the file, for error messages.

    Raises:
      InputError: `total` exceeds `FREE + MAX_RATIO * size`.
    """
    if total > FREE + MAX_RATIO * size:
        raise DamageError(
            f"{path} has {size:,} bytes and becomes {total:,} and more when it is unpacked, which no file of "
            "examples does"
        )


_XZ = b"\xfd7zXZ\x00"


def _gunzip(file: BinaryIO) -> Iterator[bytes]:
    """Decompresses member by member: Python's own reader takes 20 µs per member, and 20 bytes can be a member."""
    given = file.read(_GZIP_PIECE)
    while given:
        if given[:2] not in (b"\x1f\x8b", b"\x1f"):
            raise zlib.error("Not a gzipped file, or something follows its end")
        decompressor = zlib.decompressobj(zlib.MAX_WBITS | 16)
        while not decompressor.eof:
            if piece := decompressor.decompress(given, _PIECE):
                yield piece
            given = decompressor.unconsumed_tail
            # After a full piece the decompressor may hold more output and need no input.
            if not (given or piece or decompressor.eof or (given := file.read(_GZIP_PIECE))):
                raise EOFError
        given = decompressor.unused_data or file.read(_GZIP_PIECE)
        # Zero padding may follow a member.
        while given and not (given := given.lstrip(b"\0")):
            given = file.read(_GZIP_PIECE)


def _unxz(file: BinaryIO) -> Iterator[bytes]:
    """Decompresses stream by stream: Python's own reader takes a damaged second stream for the end of the file."""
    given = file.read(_PIECE)
    while given:
        decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)
        while not decompressor.eof:
            if piece := decompressor.decompress(given, _PIECE):
                yield piece
            given = b""
            if decompressor.needs_input and not decompressor.eof and not (given := file.read(_PIECE)):
                raise EOFError
        given = decompressor.unused_data or file.read(_PIECE)
        # Zero padding may follow a stream.
        while given and not (given := given.lstrip(b"\0")):
            given = file.read(_PIECE)


@contextlib.contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    try:
        yield
    except EOFError:
        raise DamageError(f"{path} is cut short: its compressed data end too early") from None
    except (zlib.error, lzma.LZMAError) as error:
        raise DamageError(f"{path} cannot be decompressed: {error}") from None
    except OSError as error:
        raise DamageError(f"{path} cannot be read: {error.strerror or error}") from None

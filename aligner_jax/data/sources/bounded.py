"""Content of a data file in pieces, decompressed, within bounds that files made by people do not reach."""

import contextlib
import lzma
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from aligner_jax.errors import InputError
from aligner_jax.files.content import MEBIBYTE, open_file

MOST_RECORD = 4 * MEBIBYTE
"""Bytes of one record, row or line: a million tokens."""
MOST_RATIO, FREE = 100, 16 * MEBIBYTE
"""A file may become so many times its size, and so many bytes more. Text compresses 3 to 30 times; files that are made
to fill the memory, 200 to 10,000 times."""
_PIECE = MEBIBYTE
# Each member copies the rest of the piece after it.
_GZIP_PIECE = 2**13
# `xz -9` makes files that need 65 MiB to be read.
_XZ_MEMORY = 128 * MEBIBYTE


def content_pieces(path: Path) -> Iterator[bytes]:
    """Yields a file's content in order, decompressed if it is gzip or xz; what a file is, its first bytes or name say.

    Raises:
      InputError: the file cannot be read, is damaged or cut short, or becomes more than a file of its size should.
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
    """Yields the pieces of a file of `size` bytes. Raises InputError once they are too many."""
    total = 0
    for piece in pieces:
        total += len(piece)
        check_ratio(total, size, path)
        yield piece


def check_ratio(total: int, size: int, path: Path) -> None:
    """Refuses what fills the memory: `total` bytes out of a file of `size` bytes.

    Raises:
      InputError: they are more than any text's.
    """
    if total > FREE + MOST_RATIO * size:
        raise InputError(
            f"{path} has {size:,} bytes and becomes {total:,} and more when it is unpacked, which no file of "
            "examples does"
        )


_XZ = b"\xfd7zXZ\x00"


def _gunzip(file: BinaryIO) -> Iterator[bytes]:
    """One member after the other; Python's own reader takes 20 µs for each, of which 20 bytes of a file are one."""
    given = file.read(_GZIP_PIECE)
    while given:
        if given[:2] not in (b"\x1f\x8b", b"\x1f"):
            raise zlib.error("Not a gzipped file, or something follows its end")
        decompressor = zlib.decompressobj(zlib.MAX_WBITS | 16)
        while not decompressor.eof:
            if piece := decompressor.decompress(given, _PIECE):
                yield piece
            given = decompressor.unconsumed_tail
            # After a piece there may be more without any input.
            if not (given or piece or decompressor.eof or (given := file.read(_GZIP_PIECE))):
                raise EOFError
        given = decompressor.unused_data or file.read(_GZIP_PIECE)
        # Members may be followed by zeros.
        while given and not (given := given.lstrip(b"\0")):
            given = file.read(_GZIP_PIECE)


def _unxz(file: BinaryIO) -> Iterator[bytes]:
    """One stream after the other; Python's own reader takes a damaged second one for the file's end."""
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
        # Streams may be followed by zeros.
        while given and not (given := given.lstrip(b"\0")):
            given = file.read(_PIECE)


@contextlib.contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    try:
        yield
    except EOFError:
        raise InputError(f"{path} is cut short: its compressed data end too early") from None
    except (zlib.error, lzma.LZMAError) as error:
        raise InputError(f"{path} cannot be decompressed: {error}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None

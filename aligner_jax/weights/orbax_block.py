"""Reads one array of an Orbax checkpoint chunk by chunk. Decodes chunks in bounded memory and compares their CRCs.

Orbax writes an array as a Zarr (version 2) in an OCDBT key-value store. Neither keeps checksums of the values. Orbax's
own restore accepts a chunk of any content, takes a missing one for zeros, and lets 20 kilobytes decode to gigabytes.
"""

import contextlib
import itertools
import math
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import tensorstore

from aligner_jax.errors import InputError
from aligner_jax.files.content import MEBIBYTE
from aligner_jax.files.fields import Fields
from aligner_jax.files.json_text import parse_object
from aligner_jax.runtime.files import reason

_DTYPES = {"<f4": np.dtype(np.float32), "<f2": np.dtype(np.float16), "bfloat16": np.dtype(jnp.bfloat16)}
_CRC_DIGITS = 8


class Block:
    """A stored array.

    Attributes:
      shape, dtype: shape and dtype of the array.
      chunks: shape of a chunk. The last chunk of an axis may reach beyond the array.
    """

    def __init__(self, folder: Path, leaf: str, what: str) -> None:
        """Opens the array named `leaf` in an Orbax checkpoint's folder.

        Args:
          what: name of the block, with which its error messages begin.

        Raises:
          InputError: the checkpoint has no such array, cannot be read, or does not store it as Orbax does.
        """
        self.what, self._leaf = what, leaf
        base = {"driver": "file", "path": f"{folder.absolute()}/"}
        with self._failure_is_one_sentence():
            self._store: Any = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
        text = self._value(".zarray")
        if text is None or len(text) > MEBIBYTE:
            raise InputError(f"{what} cannot be read: its checkpoint has no array of that name")
        where = f"{what}: its .zarray"
        fields = Fields(parse_object(text.decode(errors="replace"), where), where)
        self.dtype = _DTYPES[fields.choice("dtype", _DTYPES)]
        self.shape, self.chunks = tuple(fields.integers("shape")), tuple(fields.integers("chunks"))
        if len(self.chunks) != len(self.shape) or any(c > n for c, n in zip(self.chunks, self.shape, strict=True)):
            raise fields.error("chunks", f"is {list(self.chunks)}, which does not fit the shape {list(self.shape)}")
        fields.choice("order", ("C",))
        self._separator = fields.choice("dimension_separator", (".", "/"), ".")
        compressor = fields.section("compressor")
        if compressor is None or compressor.get("id") != "zstd" or fields.has("filters"):
            raise fields.error("compressor", "is another than Orbax's, zstd without filters")

    def read(self, at: tuple[int, ...], crc: str | None) -> np.ndarray:
        """Returns the chunk at a position of the chunk grid, cut to the array's shape; contiguous, possibly read-only.

        Args:
          crc: the chunk's digits from `checksums`; None skips the comparison.

        Raises:
          InputError: the chunk is missing, cannot be decoded, or differs from what was written.
        """
        import pyarrow

        value = self._value(self._separator.join(map(str, at)))
        place = f"chunk {list(at)}"
        if value is None:
            raise InputError(f"{self.what} is damaged: its {place} is missing")
        count = math.prod(self.chunks) * self.dtype.itemsize
        try:
            # The size bounds the memory: a damaged chunk could decode to gigabytes.
            content = pyarrow.decompress(value, decompressed_size=count, codec="zstd")
        except (OSError, ValueError, pyarrow.ArrowException) as error:
            raise InputError(f"{self.what} is damaged: its {place} cannot be decoded ({error})") from None
        numbers = np.frombuffer(content, np.uint8).view(self.dtype).reshape(self.chunks)
        numbers = np.ascontiguousarray(numbers[tuple(slice(cut.stop - cut.start) for cut in self.cuts(at))])
        if crc is not None and _crc(numbers) != crc:
            raise InputError(f"{self.what} is damaged: its {place} is not what was written (the CRCs differ)")
        return numbers

    def grid(self, wanted: Sequence[slice]) -> Iterator[tuple[int, ...]]:
        """Returns the grid positions of the chunks that overlap `wanted`, a slice of every axis."""
        ranges = (cut.indices(n)[:2] for cut, n in zip(wanted, self.shape, strict=True))
        return itertools.product(
            *(range(start // c, -(-stop // c)) for (start, stop), c in zip(ranges, self.chunks, strict=True))
        )

    def cuts(self, at: tuple[int, ...]) -> tuple[slice, ...]:
        """Returns the slices of the array that a chunk covers."""
        return _cuts(at, self.chunks, self.shape)

    def number(self, at: tuple[int, ...]) -> int:
        """Returns the index of a chunk in the order of `checksums`."""
        return int(np.ravel_multi_index(at, _counts(self.chunks, self.shape)))

    @property
    def num_chunks(self) -> int:
        """Number of chunks of the array."""
        return math.prod(_counts(self.chunks, self.shape))

    def _value(self, key: str) -> bytes | None:
        with self._failure_is_one_sentence():
            found = self._store.read(f"{self._leaf}/{key}").result()
            return found.value if found.state == "value" else None

    @contextlib.contextmanager
    def _failure_is_one_sentence(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # TensorStore raises ValueError for every failure, but does not promise to.
            raise InputError(f"{self.what} cannot be read: {reason(error)}") from error


def checksums(array: np.ndarray, chunks: tuple[int, ...]) -> str:
    """Returns the CRC-32 of every chunk of an array, 8 hexadecimal digits each, in row-major order."""
    places = np.ndindex(*_counts(chunks, array.shape))
    return "".join(_crc(np.ascontiguousarray(array[_cuts(at, chunks, array.shape)])) for at in places)


def checksum_of(digits: str, number: int) -> str:
    """Returns the digits of one chunk from the result of `checksums`."""
    return digits[_CRC_DIGITS * number : _CRC_DIGITS * (number + 1)]


def are_checksums(digits: str, num_chunks: int) -> bool:
    """Returns True if `digits` has the form of the checksums of `num_chunks` chunks."""
    return len(digits) == _CRC_DIGITS * num_chunks and re.fullmatch(r"[0-9a-f]*", digits) is not None


def _crc(numbers: np.ndarray) -> str:
    return f"{zlib.crc32(numbers.reshape(-1).view(np.uint8)):0{_CRC_DIGITS}x}"


def _counts(chunks: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(-(-n // c) for n, c in zip(shape, chunks, strict=True))


def _cuts(at: tuple[int, ...], chunks: tuple[int, ...], shape: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(i * c, min((i + 1) * c, n)) for i, c, n in zip(at, chunks, shape, strict=True))

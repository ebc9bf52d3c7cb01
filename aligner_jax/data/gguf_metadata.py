"""Reads the header of a GGUF file in one pass.

`gguf.GGUFReader` makes several array views of every string. For a vocabulary of 49,152 it takes 7 s, this module 0.1 s.
"""

import dataclasses
import mmap
import os
import struct
import sys
from pathlib import Path

import numpy as np

from aligner_jax.errors import InputError
from aligner_jax.files.content import MEBIBYTE, open_file

type Value = int | float | bool | str | list[str] | np.ndarray

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _BOOL, _ARRAY = 8, 7, 9
_ALIGNMENT = "general.alignment"

# The limits are several times the needs of the largest vocabularies. A short string takes 5 times its bytes in memory,
# so without limits a file of strings or names alone would take several times its size.
_MAX_BYTES = 32 * MEBIBYTE
_MAX_FIELDS = 2**12
_MAX_TENSORS = 2**16
_MAX_MEMORY = 50 * MEBIBYTE
"""Limit of the memory of values beyond their size in the file, in bytes."""

# ggml's own limits.
_LONGEST_KEY, _LONGEST_NAME = 2**16 - 1, 64
_MAX_AXES = 4

# Accounting of memory: a single string is counted from `_LONG` bytes on; an array is counted in groups of `_TOGETHER`
# strings, exactly from `_MANY` strings on, else by the bound of `_STRING_BYTES` and 4 times the length per string.
_LONG, _TOGETHER, _MANY, _STRING_BYTES = 1024, 4096, 2**17, 88


@dataclasses.dataclass(frozen=True, slots=True)
class TensorEntry:
    """Entry of the tensor table.

    Attributes:
      shape: lengths of the axes, fastest axis first.
      type: ggml type id.
      offset: offset of the data from `GGUFHeader.data_offset`, in bytes.
    """

    shape: tuple[int, ...]
    type: int
    offset: int


@dataclasses.dataclass(frozen=True)
class GGUFHeader:
    """Metadata fields and tensor table of a GGUF file, in the file's order.

    Attributes:
      fields: metadata by key.
      tensors: tensor table by name.
      table_offset: offset of the tensor table, where the metadata end, in bytes.
      data_offset: offset of the tensor data in the file, in bytes.
      alignment: tensors begin at multiples of it from `data_offset`, in bytes.
    """

    fields: dict[str, Value]
    tensors: dict[str, TensorEntry]
    table_offset: int
    data_offset: int
    alignment: int


def read_gguf_header(path: Path) -> GGUFHeader:
    """Returns the header of a GGUF file. Arrays of numbers become NumPy arrays, arrays of strings lists.

    Raises:
      InputError: the file is not a little-endian GGUF file of version 2 or 3, or its header is truncated, damaged or
        beyond the limits of size.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            if file.read(4) != b"GGUF":
                raise InputError(f"{path} is not a GGUF file: its first four bytes are not 'GGUF'")
            with mmap.mmap(file.fileno(), min(size, _MAX_BYTES), access=mmap.ACCESS_READ) as data:
                return _Cursor(path, data, whole=size <= _MAX_BYTES).header()
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}") from None


class _Cursor:
    """Read position in the file, with the name of the part being read for messages."""

    def __init__(self, path: Path, data: mmap.mmap, whole: bool) -> None:
        self.path, self.data, self.whole, self.position, self.reading = path, data, whole, 4, "the version"
        self.memory = 0

    def header(self) -> GGUFHeader:
        try:
            return self._header()
        except (struct.error, EOFError, OverflowError):
            if not self.whole:
                raise InputError(
                    f"{self.path} is damaged: its metadata go on beyond {_MAX_BYTES:,} bytes, at {self.reading}"
                ) from None
            raise InputError(f"{self.path} is cut off within its metadata, at {self.reading}") from None
        except UnicodeDecodeError:
            raise self.damaged(f"{self.reading} is not UTF-8 text") from None

    def _header(self) -> GGUFHeader:
        version = self.number("I")
        if version not in (2, 3):
            kind = "big-endian" if version % 65536 == 0 else f"of version {version}"
            raise InputError(f"{self.path} is a GGUF file {kind}; little-endian versions 2 and 3 are read")
        tensor_count, field_count = self.whole_numbers("QQ")
        for count, most, what in (
            (field_count, _MAX_FIELDS, "metadata fields"),
            (tensor_count, _MAX_TENSORS, "tensors"),
        ):
            if count > most:
                raise self.damaged(f"it says that it has {count:,} {what}; files have at most {most:,}")
        fields: dict[str, Value] = {}
        for i in range(field_count):
            self.reading = f"metadata field {i + 1} of {field_count}"
            key = self.name(_LONGEST_KEY, fields)
            self.reading = f"metadata field {key}"
            fields[key] = self.value(self.number("I"))
        table_offset = self.position
        tensors: dict[str, TensorEntry] = {}
        for i in range(tensor_count):
            self.reading = f"entry {i + 1} of {tensor_count} of its tensor table"
            name = self.name(_LONGEST_NAME, tensors)
            tensors[name] = TensorEntry(self.shape(name), *self.whole_numbers("IQ"))
        alignment = fields.get(_ALIGNMENT, 32)
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            shown = alignment if type(alignment) in (int, float, bool) else "no number"
            raise self.damaged(f"{_ALIGNMENT} is {shown}, not a power of two")
        data_offset = -(-self.position // alignment) * alignment
        return GGUFHeader(fields, tensors, table_offset, data_offset, alignment)

    def damaged(self, problem: str) -> InputError:
        return InputError(f"{self.path} is damaged: {problem}")

    def name(self, longest: int, others: dict) -> str:
        size = self.number("Q")
        if size > longest:
            raise self.damaged(f"{self.reading} has a name of {size:,} bytes; names have at most {longest:,}")
        name = self.text(size)
        if not name:
            raise self.damaged(f"{self.reading} has an empty name")
        if name in others:
            raise self.damaged(f"{name} appears twice")
        return name

    def spend(self, memory: int) -> None:
        # The limit grows with the bytes read, not with the file's size: a header without its tensors gives the same.
        self.memory += memory
        if self.memory > self.position + _MAX_MEMORY:
            raise self.damaged(f"its metadata take more memory than those of any model, at {self.reading}")

    def number(self, code: str) -> int:
        return self.whole_numbers(code)[0]

    def whole_numbers(self, codes: str) -> tuple[int, ...]:
        numbers = struct.unpack_from("<" + codes, self.data, self.position)
        self.position += struct.calcsize("<" + codes)
        return numbers

    def take(self, size: int) -> bytes:
        end = self.position + size
        if end > len(self.data):
            raise EOFError
        piece = self.data[self.position : end]
        self.position = end
        return piece

    def text(self, size: int) -> str:
        content = self.take(size)
        if size > _LONG:
            # One character outside ASCII may make all of them 4 bytes long.
            self.spend(size * (2 if content.isascii() else 5))
        return content.decode()

    def shape(self, tensor: str) -> tuple[int, ...]:
        axes = self.number("I")
        if not 1 <= axes <= _MAX_AXES:
            raise self.damaged(f"tensor {tensor} has {axes:,} axes, not from 1 to {_MAX_AXES}")
        shape = self.whole_numbers(f"{axes}Q")
        if 0 in shape:
            raise self.damaged(f"tensor {tensor} has shape {list(shape)}, which holds no number")
        return shape

    def value(self, kind: int) -> Value:
        if kind == _STRING:
            return self.text(self.number("Q"))
        if kind in _SCALARS:
            values = self.numbers(kind, 1)
            return values[0].item()
        if kind != _ARRAY:
            raise self.damaged(f"{self.reading} has the unknown type {kind}")
        item, count = self.number("I"), self.number("Q")
        if item == _STRING:
            return self.strings(count)
        if item in _SCALARS:
            return self.numbers(item, count)
        # ggml refuses nested arrays too.
        of = "arrays" if item == _ARRAY else f"the unknown type {item}"
        raise self.damaged(f"{self.reading} is an array of {of}, which GGUF files do not hold")

    def numbers(self, kind: int, count: int) -> np.ndarray:
        dtype = np.dtype(_SCALARS[kind]).newbyteorder("<")
        content = self.take(count * dtype.itemsize)
        self.spend(len(content))
        if kind == _BOOL and content.strip(b"\0\1"):
            raise self.damaged(f"{self.reading} is a truth value other than 0 and 1")
        return np.frombuffer(content, dtype)

    def strings(self, count: int) -> list[str]:
        """Returns the same as `text` in a loop, without its calls: vocabularies have 10⁵ entries."""
        unpack, data, position = struct.Struct("<Q").unpack_from, self.data, self.position
        strings: list[str] = []
        for start in range(0, count, _TOGETHER):
            before, contents = position, []
            for _ in range(min(_TOGETHER, count - start)):
                begin = position + 8
                position = begin + unpack(data, position)[0]
                contents.append(data[begin:position])
            if position > len(data):
                raise EOFError
            self.position = position
            # `most` is an upper bound. Exact accounting adds a third to the time, so only arrays whose bound could
            # exceed the limit get it.
            most = _STRING_BYTES * len(contents) + 4 * (position - before - 8 * len(contents))
            exactly = count >= _MANY and position - before <= MEBIBYTE
            self.spend(0 if exactly else most)
            strings += map(bytes.decode, contents)
            self.spend(sum(map(sys.getsizeof, strings[start:])) + 8 * len(contents) if exactly else 0)
        return strings

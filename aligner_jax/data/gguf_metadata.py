"""The header of a GGUF file, read in one pass.

`gguf.GGUFReader` makes several array views of every string: 7 s for a vocabulary of 49,152 where this takes 0.1 s.
"""

import dataclasses
import mmap
import struct
from pathlib import Path

import numpy as np

from aligner_jax.errors import InputError

type Scalar = int | float | bool | str
type Value = Scalar | list[str] | list[Value] | np.ndarray

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclasses.dataclass(frozen=True)
class TensorEntry:
    """One line of the tensor table: shape, fastest axis first; ggml type number; offset in bytes from `data_offset`."""

    shape: tuple[int, ...]
    type: int
    offset: int


@dataclasses.dataclass(frozen=True)
class GGUFHeader:
    """Metadata fields and tensor table of a GGUF file; `data_offset` is where tensor data starts, in bytes."""

    fields: dict[str, Value]
    tensors: dict[str, TensorEntry]
    data_offset: int


def read_gguf_header(path: Path) -> GGUFHeader:
    """Fields (arrays of numbers as numpy arrays, arrays of strings as lists) and tensor table of a GGUF file.

    Raises:
      InputError: not a GGUF file of version 2 or 3, a big-endian one, cut off within the header, or a duplicate name.
    """
    try:
        with open(path, "rb") as file:
            if file.read(4) != b"GGUF":
                raise InputError(f"{path} is not a GGUF file: its first four bytes are not 'GGUF'")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Cursor(path, data).header()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None


class _Cursor:
    """A position in the file, and the name of what is being read there, for messages."""

    def __init__(self, path: Path, data: mmap.mmap):
        self.path, self.data, self.position, self.reading = path, data, 4, "the version"

    def header(self) -> GGUFHeader:
        try:
            return self._header()
        except (struct.error, EOFError, OverflowError):
            raise InputError(f"{self.path} is cut off within its metadata, at {self.reading}") from None
        except UnicodeDecodeError:
            raise InputError(f"{self.path} is damaged: {self.reading} is not UTF-8 text") from None

    def _header(self) -> GGUFHeader:
        version = self.number("I")
        if version not in (2, 3):
            kind = "big-endian" if version % 65536 == 0 else f"of version {version}"
            raise InputError(f"{self.path} is a GGUF file {kind}; little-endian versions 2 and 3 are read")
        tensor_count, field_count = self.number("Q"), self.number("Q")
        fields: dict[str, Value] = {}
        for i in range(field_count):
            self.reading = f"metadata field {i + 1} of {field_count}"
            key = self.string()
            self.reading = f"metadata field {key}"
            self.refuse_duplicate(key, fields)
            fields[key] = self.value(self.number("I"))
        tensors: dict[str, TensorEntry] = {}
        for i in range(tensor_count):
            self.reading = f"entry {i + 1} of {tensor_count} of its tensor table"
            name = self.string()
            self.refuse_duplicate(name, tensors)
            shape = tuple(self.number("Q") for _ in range(self.number("I")))
            tensors[name] = TensorEntry(shape, self.number("I"), self.number("Q"))
        alignment = fields.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment <= 0:
            raise InputError(f"{self.path} is damaged: general.alignment is {alignment!r}")
        return GGUFHeader(fields, tensors, -(-self.position // alignment) * alignment)

    def refuse_duplicate(self, name: str, names: dict) -> None:
        if name in names:
            raise InputError(f"{self.path} is damaged: {name} appears twice")

    def number(self, code: str):
        (number,) = struct.unpack_from("<" + code, self.data, self.position)
        self.position += struct.calcsize("<" + code)
        return number

    def take(self, size: int) -> bytes:
        end = self.position + size
        if end > len(self.data):
            raise EOFError
        piece = self.data[self.position : end]
        self.position = end
        return piece

    def string(self) -> str:
        return self.take(self.number("Q")).decode()

    def value(self, type_number: int) -> Value:
        if type_number in _SCALARS:
            return self.number(_SCALARS[type_number])
        if type_number == _STRING:
            return self.string()
        if type_number != _ARRAY:
            raise InputError(f"{self.path} is damaged: {self.reading} has the unknown type {type_number}")
        item, count = self.number("I"), self.number("Q")
        if item in _SCALARS:
            dtype = np.dtype(_SCALARS[item]).newbyteorder("<")
            return np.frombuffer(self.take(count * dtype.itemsize), dtype)
        if item == _STRING:
            return self.strings(count)
        return [self.value(item) for _ in range(count)]

    def strings(self, count: int) -> list[str]:
        """As `string` in a loop, without its calls: vocabularies have 10⁵ entries."""
        unpack, data, position, strings = struct.Struct("<Q").unpack_from, self.data, self.position, []
        for _ in range(count):
            (size,) = unpack(data, position)
            position += 8 + size
            strings.append(data[position - size : position].decode())
        if position > len(data):
            raise EOFError
        self.position = position
        return strings

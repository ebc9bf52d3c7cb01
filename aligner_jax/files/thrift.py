"""Reads structures in Thrift's compact protocol, which Parquet uses for its headers and footer.

Source: github.com/apache/thrift, doc/specs/thrift-compact-protocol.md.
"""

from typing import NamedTuple

type Struct = dict[int, object]
"""Values by field id: integers, flags, bytes, lists and structures."""

_MAX_DEPTH = 16
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 12
_INTEGERS = (4, 5, 6)


class Malformed(ValueError):
    """Bytes that do not encode a structure; the message continues a sentence about them."""


class Read(NamedTuple):
    """A structure and its end offset."""

    fields: Struct
    end: int


def read_struct(data: bytes, start: int = 0, *, most_elements: int = 4096) -> Read:
    """Returns the structure that begins at offset `start`.

    Args:
      data: bytes that hold the structure.
      start: offset of its first byte.
      most_elements: limit of the elements of a list.

    Raises:
      Malformed: the bytes encode no structure, end too early, nest deeper than 16, or have a list of too many elements.
    """
    reader = _Reader(data, start, most_elements)
    try:
        return Read(reader.struct(_MAX_DEPTH), reader.at)
    except IndexError:
        raise Malformed("ends too early") from None


class _Reader:
    def __init__(self, data: bytes, at: int, most_elements: int) -> None:
        self.data, self.at, self._most = data, at, most_elements

    def struct(self, depth: int) -> Struct:
        if depth == 0:
            raise Malformed("is nested too deeply")
        fields: Struct = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._integer()
            kind = head & 15
            # The type of a boolean field is its value.
            fields[number] = kind == _TRUE if kind in (_TRUE, _FALSE) else self._value(kind, depth)
        return fields

    def _value(self, kind: int, depth: int) -> object:
        if kind in _INTEGERS:
            return self._integer()
        if kind == _BINARY:
            return self._bytes(self._varint())
        if kind == _STRUCT:
            return self.struct(depth - 1)
        if kind in (_LIST, _SET):
            return self._list(depth - 1)
        if kind == _DOUBLE:
            return self._bytes(8)
        if kind == _BYTE:
            return self._byte()
        raise Malformed(f"has a value of the unknown type {kind}")

    def _list(self, depth: int) -> list[object]:
        if depth == 0:
            raise Malformed("is nested too deeply")
        head = self._byte()
        size, kind = head >> 4, head & 15
        if size == 15:
            size = self._varint()
        if size > self._most:
            raise Malformed("has a list of too many elements")
        if kind in (_TRUE, _FALSE):
            return [self._byte() == _TRUE for _ in range(size)]
        return [self._value(kind, depth) for _ in range(size)]

    def _byte(self) -> int:
        byte = self.data[self.at]
        self.at += 1
        return byte

    def _bytes(self, size: int) -> bytes:
        if size > len(self.data) - self.at:
            raise Malformed("ends too early")
        self.at += size
        return self.data[self.at - size : self.at]

    def _integer(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self.data[self.at]
            self.at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise Malformed("has an integer of too many bytes")

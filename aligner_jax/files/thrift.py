"""Structures in Thrift's compact protocol, as Parquet writes its headers."""

from collections.abc import Callable
from typing import NamedTuple

type Struct = dict[int, object]
"""Values by field number: integers, flags, bytes, lists and structures."""

_MOST_DEPTH, _MOST_ELEMENTS = 16, 4096


class Malformed(ValueError):
    """Bytes that are no structure."""


class Read(NamedTuple):
    """A structure and the position behind it."""

    fields: Struct
    end: int


def read_struct(data: bytes, start: int = 0) -> Read:
    """Returns the structure that begins at `start`.

    Raises:
      Malformed: there is none, it ends too early, is nested more than 16 deep, or has a list of more than 4096
        elements.
    """
    try:
        return Read(*_struct(data, start, _MOST_DEPTH))
    except IndexError:
        raise Malformed("ends too early") from None


def _struct(data: bytes, at: int, depth: int) -> tuple[Struct, int]:
    if depth == 0:
        raise Malformed("is nested too deeply")
    fields: Struct = {}
    number = 0
    while head := data[at]:
        at += 1
        if head >> 4:
            number += head >> 4
        else:
            unsigned, at = _varint(data, at)
            number = _signed(unsigned)
        kind = head & 15
        # A flag of a field is in its type.
        fields[number], at = (kind == 1, at) if kind in (1, 2) else _value(data, at, kind, depth)
    return fields, at + 1


def _value(data: bytes, at: int, kind: int, depth: int) -> tuple[object, int]:
    if kind not in _READ:
        raise Malformed(f"has a value of the unknown type {kind}")
    return _READ[kind](data, at, depth)


def _list(data: bytes, at: int, depth: int) -> tuple[list, int]:
    if depth == 0:
        raise Malformed("is nested too deeply")
    size, kind = data[at] >> 4, data[at] & 15
    at += 1
    if size == 15:
        size, at = _varint(data, at)
    if size > _MOST_ELEMENTS:
        raise Malformed("has a list of too many elements")
    values = []
    for _ in range(size):
        value, at = (data[at] == 1, at + 1) if kind in (1, 2) else _value(data, at, kind, depth - 1)
        values.append(value)
    return values, at


def _bytes(data: bytes, at: int, depth: int) -> tuple[bytes, int]:
    size, at = _varint(data, at)
    if size > len(data) - at:
        raise Malformed("ends too early")
    return data[at : at + size], at + size


def _integer(data: bytes, at: int, depth: int) -> tuple[int, int]:
    value, at = _varint(data, at)
    return _signed(value), at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        value, at = value | (byte & 127) << shift, at + 1
        if byte < 128:
            return value, at
    raise Malformed("has an integer of too many bytes")


def _signed(value: int) -> int:
    return value >> 1 ^ -(value & 1)


_READ: dict[int, Callable[[bytes, int, int], tuple[object, int]]] = {
    3: lambda data, at, depth: (data[at], at + 1),
    4: _integer,
    5: _integer,
    6: _integer,
    7: lambda data, at, depth: (data[at : at + 8], at + 8),
    8: _bytes,
    9: _list,
    10: _list,
    12: lambda data, at, depth: _struct(data, at, depth - 1),
}

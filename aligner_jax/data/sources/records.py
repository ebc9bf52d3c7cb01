"""Records of a JSON array or of JSON lines, each with the line it begins on."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from aligner_jax.errors import InputError

_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


def read_records(path: Path | str) -> Iterator[tuple[dict, str]]:
    """The objects of a file that is one JSON array, or has one JSON object a line (blank lines are skipped).

    Yields:
      The object, and where it begins: "file:line".

    Raises:
      InputError: the file cannot be read, holds no record, or has something in it that is not an object.
    """
    text = _read(Path(path))
    found = False
    array = text.lstrip(" \t\r\n").startswith("[")
    for value, line in _array(text, path) if array else _lines(text, path):
        if not isinstance(value, dict):
            raise InputError(f"{path}:{line} holds {_kind(value)} where an object (a record with named fields) belongs")
        found = True
        yield value, f"{path}:{line}"
    if not found:
        raise InputError(f"{path} {'is empty' if not text.strip() else 'holds no records'}")


def text_field(record: dict, name: str, where: str, default: str | None = None) -> str:
    """The string under `name`; `default`, where there is one, stands for a missing field or null.

    Raises:
      InputError: the field is missing, is not a string, or has half a surrogate pair in it.
    """
    value = record.get(name)
    if value is None and default is not None:
        return default
    if name not in record:
        present = ", ".join(map(repr, record)) or "none"
        raise InputError(f"{where}: the record has no field {name!r}; its fields are {present}")
    if not isinstance(value, str):
        raise InputError(f"{where}: the field {name!r} holds {_kind(value)}, not text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(f"{where}: the field {name!r} holds half a surrogate pair, which is no character") from None
    return value


def _read(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}:{data.count(b'\n', 0, error.start) + 1} is not UTF-8 text") from None


def _lines(text: str, path: Path | str) -> Iterator[tuple[object, int]]:
    # Not str.splitlines: JSON strings may hold U+2028 and the like as they are.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield json.loads(line), number
            except json.JSONDecodeError as error:
                raise InputError(f"{path}:{number} is not JSON: {error.msg} (column {error.colno})") from None


def _array(text: str, path: Path | str) -> Iterator[tuple[object, int]]:
    """Element by element, because `json.loads` of the whole would not tell where each begins."""
    position, line, counted = text.index("[") + 1, 1, 0

    def skip_space() -> str:
        nonlocal position, line, counted
        position = _SPACE.match(text, position).end()  # pyright: ignore[reportOptionalMemberAccess]: it matches nothing too
        line, counted = line + text.count("\n", counted, position), position
        return text[position : position + 1]

    if skip_space() == "]":
        position += 1
    else:
        while True:
            try:
                value, end = _DECODER.raw_decode(text, position)
            except json.JSONDecodeError as error:
                raise InputError(f"{path}:{error.lineno} is not JSON: {error.msg} (column {error.colno})") from None
            yield value, line
            position = end
            after = skip_space()
            position += 1
            if after == "]":
                break
            if after != ",":
                raise InputError(
                    f"{path}:{line} is not JSON: expected ',' or the array's ']'{'' if after else ', the file ends'}"
                )
            skip_space()
    if skip_space():
        raise InputError(f"{path}:{line} is not JSON: something follows the array's end")


def _kind(value: object) -> str:
    """What a JSON value is, in JSON's words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    kinds = {dict: "an object", list: "an array", str: "a string", int: "a number", float: "a number"}
    return kinds[type(value)]

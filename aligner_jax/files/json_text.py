"""Parses untrusted JSON within limits; every mistake in it raises an InputError of one sentence."""

import json
from pathlib import Path

from aligner_jax.errors import InputError
from aligner_jax.files.content import MEBIBYTE, decode_text, read_bytes

MAX_DEPTH = 100
MAX_VALUES = 500_000
"""Default limit of values per text. An empty list takes 30 times the bytes of its text in memory."""


def read_json(path: str | Path, *, most: int = 16 * MEBIBYTE) -> object:
    """Returns the value in a JSON file of at most `most` bytes.

    Raises:
      InputError: the file cannot be read, or see `parse_json`.
    """
    return parse_json(decode_text(read_bytes(path, most=most), path), Path(path))


def parse_json(text: str, where: str | Path, *, most_values: int = MAX_VALUES) -> object:
    """Returns the value of a JSON text.

    NaN and infinities pass, as in Python's json; `files.fields` checks the values of fields.

    Args:
      text: the JSON text.
      where: file or field of the text, with which errors begin.
      most_values: limit of commas and opening brackets together.

    Raises:
      InputError: the text is not JSON, has a field of an object twice, is nested more than `MAX_DEPTH` deep, or has
        too many values or a number with too many digits; the message names the line of a syntax error.
    """
    check_values(text, where, most_values)
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        line = f":{error.lineno}" if "\n" in text or isinstance(where, Path) else ""
        raise InputError(f"{where}{line} is not JSON: {json_reason(error)}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON that can be read: {json_reason(error)}") from None
    if text.count("{") + text.count("[") > MAX_DEPTH:
        _check_depth(value, where)
    return value


def check_values(text: str, where: str | Path, most_values: int) -> None:
    """Refuses a text with too many values, before it is parsed.

    Raises:
      InputError: it has more than `most_values` commas and opening brackets.
    """
    if len(text) > most_values and text.count(",") + text.count("[") + text.count("{") > most_values:
        raise InputError(f"{where} is not JSON that can be read: it has more than {most_values:,} values")


def parse_value_at(text: str, start: int, where: str | Path) -> tuple[object, int]:
    """Returns the value that begins at offset `start` of a text of many values, and its end offset.

    Raises:
      json.JSONDecodeError: there is no JSON value at `start`; its position is an offset in `text`.
      InputError: the value exceeds another limit of `parse_json`.
    """
    try:
        value, end = _DECODER.raw_decode(text, start)
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON that can be read: {json_reason(error)}") from None
    if text.count("{", start, end) + text.count("[", start, end) > MAX_DEPTH:
        _check_depth(value, where)
    return value, end


def parse_object(text: str, where: str | Path, *, most_values: int = MAX_VALUES) -> dict[str, object]:
    """Returns the object of a JSON text. Raises InputError as `parse_json` does, or if it is no object."""
    value = parse_json(text, where, most_values=most_values)
    if not isinstance(value, dict):
        raise InputError(f"{where} is not a JSON object")
    return value


def read_object(path: str | Path, *, most: int = 16 * MEBIBYTE) -> dict[str, object]:
    """Returns the object in a JSON file. Raises InputError as `read_json` does, or if it is no object."""
    value = read_json(path, most=most)
    if not isinstance(value, dict):
        raise InputError(f"{path} is not a JSON object")
    return value


def json_reason(error: Exception) -> str:
    """Returns the reason of an error from Python's json: its own message, or the limit that was exceeded."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} (column {error.colno})"
    if isinstance(error, _Duplicate):
        return str(error)
    return "it is nested too deeply" if isinstance(error, RecursionError) else "it holds a number with too many digits"


class _Duplicate(ValueError):
    pass


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise _Duplicate(f"an object has the field {twice!r} twice")
    return values


# Shared, since `json.loads` would make a decoder for every record of a file.
_DECODER = json.JSONDecoder(object_pairs_hook=_without_duplicates)


def _check_depth(value: object, where: str | Path) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        inner = (each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list))
        level = [item for items in inner for item in items if isinstance(item, dict | list)]
        if not level:
            return
    raise InputError(f"{where} is not JSON that can be read: it is nested too deeply")

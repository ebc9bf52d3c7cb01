"""Values of a JSON array or of JSON lines, each with the line it begins on."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from aligner_jax.errors import InputError

_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


def json_values(text: str, path: Path) -> Iterator[tuple[object, int]]:
    """The elements of a text that is one JSON array, or else its lines, of which blank ones are skipped.

    Yields:
      The value, and the number of the line it begins on, from 1.

    Raises:
      InputError: the text is not JSON; names the file and the line.
    """
    return _array(text, path) if text.lstrip(" \t\r\n").startswith("[") else _lines(text, path)


def _lines(text: str, path: Path) -> Iterator[tuple[object, int]]:
    # Not str.splitlines: JSON strings may hold U+2028 and the like as they are.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{path}:{number} is not JSON: {_reason(error)}") from None
            yield value, number


def _array(text: str, path: Path) -> Iterator[tuple[object, int]]:
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
            except (ValueError, RecursionError) as error:
                at = error.lineno if isinstance(error, json.JSONDecodeError) else line
                raise InputError(f"{path}:{at} is not JSON: {_reason(error)}") from None
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


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} (column {error.colno})"
    # Python's parser has two limits of its own: the depth of its stack, and the digits of a whole number.
    return "it is nested too deeply" if isinstance(error, RecursionError) else "it holds a number with too many digits"

"""Mutations that several kinds share: of bytes, and of the values of a JSON text."""

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

VALUES: tuple[object, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 2**31, 2**63, 10**400, 0.5, -0.0, 1e-45, 1e300, float("nan"), float("inf"),
    float("-inf"), "", "x", "no", "nan", "0", "\x1b[2J", "\ud800", "a" * 5000, [], [1], ["x"], [[]], {}, {"x": 1},
    [None] * 3,
)  # fmt: skip
"""Values of every type that a field might wrongly have."""


def of_bytes(rng: random.Random, content: bytes) -> bytes:
    """Returns the bytes with one to three random changes: a flip, a cut, a repetition, a swap, or a written number."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if not data:
            return bytes(rng.randrange(256) for _ in range(rng.randrange(16)))
        at = rng.randrange(len(data))
        size = min(len(data) - at, 2 ** rng.randrange(8))
        change = rng.randrange(8)
        if change == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif change == 1:
            data[at] = rng.randrange(256)
        elif change == 2:
            del data[at : at + size]
        elif change == 3:
            data[at:at] = data[at : at + size]
        elif change == 4:
            del data[at:]
        elif change == 5:
            data[at:at] = bytes(rng.randrange(256) for _ in range(size))
        elif change == 6:
            number = rng.choice((0, 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1, rng.randrange(2**16)))
            written = number.to_bytes(8, "little")[: rng.choice((1, 2, 4, 8))]
            data[at : at + len(written)] = written
        else:
            other = rng.randrange(len(data))
            data[at : at + size] = data[other : other + size]
    return bytes(data)


def of_json(rng: random.Random, text: bytes) -> bytes:
    """Returns a JSON text with one value changed, removed, moved or duplicated, or with damaged characters."""
    change = rng.randrange(12)
    if change == 0:
        return of_bytes(rng, text)
    if change == 1:
        return rng.choice((b"[" * 100_000, b'{"a":' + b"9" * 5000 + b"}", b"null", b"[]", b"", b'"x"', b"\xff\xfe{}"))
    value = json.loads(text)
    places = list(_places(value))
    if not places:
        return of_bytes(rng, text)
    holder, key = rng.choice(places)
    if change == 2 and isinstance(holder, dict):
        del holder[key]
    elif change == 3 and isinstance(holder, dict):
        holder[rng.choice(("x", "", "a" * 2000, "\x1b", *map(str, holder)))] = holder.pop(key)
    elif change == 4 and isinstance(holder, list):
        holder.insert(rng.randrange(len(holder) + 1), rng.choice(VALUES))
    elif change == 5 and len(places) > 1:
        other, at = rng.choice(places)
        holder[key], other[at] = other[at], holder[key]
    elif change == 6:
        holder[key] = _nearby(rng, holder[key])
    elif change == 7 and isinstance(holder, dict):
        return _twice(json.dumps(value), str(key), json.dumps(rng.choice(VALUES))).encode()
    else:
        holder[key] = rng.choice(VALUES)
    # json.dumps refuses circles with an error of its own; a value may by chance be put into itself.
    try:
        return json.dumps(value).encode()
    except (ValueError, RecursionError):
        return b"{}"


def one_file(rng: random.Random, files: dict[str, bytes], how: Callable[[random.Random, bytes], bytes], name: str):
    """Returns the files with one of them changed."""
    return {**files, name: how(rng, files[name])}


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yields every (container, key) of a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items):
        yield value, key
        yield from _places(item)


def _nearby(rng: random.Random, value: object) -> object:
    if isinstance(value, bool):
        return rng.choice((int(value), str(value), str(value).lower(), not value))
    if isinstance(value, int | float):
        return rng.choice((value + 1, value - 1, -value, value * 2, value * 10**6, str(value), [value], value + 0.5))
    if isinstance(value, str):
        return rng.choice((value + "x", value[1:], value.upper(), value * 50, f" {value}", f"{value}\n", [value]))
    return [value] if isinstance(value, dict) else {"x": value}


def _twice(text: str, key: str, value: str) -> str:
    return text.replace(f"{json.dumps(key)}: ", f"{json.dumps(key)}: {value}, {json.dumps(key)}: ", 1)

"""Fields of a config section: names, types, defaults, ranges and meanings, from its dataclass."""

import dataclasses
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from scripts.site.reference.text import entries, sections

_WORDS = {str: "text", int: "integer", float: "number", bool: "True or False", types.NoneType: "None", dict: "section"}
_ANY = {"options"}
"""Fields that collect what a method, an objective or an evaluation has of its own."""


_HIGHEST = 10**6


class Field(NamedTuple):
    """A field of a config: its dotted name, and texts that describe it."""

    name: str
    kind: str
    default: str
    allowed: str
    meaning: str


def fields_of(section: type, name: str) -> Iterator[Field]:
    """Yields the fields of a section and of the sections within it.

    Args:
      section: a dataclass that `runtime.fields.parse_section` reads.
      name: name of the section, such as "config.optim".
    """
    hints, meanings = typing.get_type_hints(section), meanings_of(section)
    for field in dataclasses.fields(section):
        kind, full = hints[field.name], f"{name}.{field.name}"
        inner = next((k for k in (kind, *typing.get_args(kind)) if dataclasses.is_dataclass(k)), None)
        if inner is not None and typing.get_origin(kind) is not tuple:
            yield from fields_of(typing.cast(type, inner), full)
        elif not (field.name in _ANY and hasattr(section, "arrange")):
            yield Field(full, _kind(kind), _default(field), _allowed(kind, field), meanings.get(field.name, ""))


def meanings_of(section: type) -> dict[str, str]:
    """Returns the meanings of a dataclass's fields by name, from the docstrings of the class and of its bases."""
    found: dict[str, str] = {}
    for each in reversed(section.__mro__):
        if dataclasses.is_dataclass(each):
            found |= entries(sections(each.__doc__).get("Attributes", ""))
    return found


def _kind(kind: Any) -> str:
    if isinstance(kind, types.UnionType):
        return " or ".join(_kind(each) for each in typing.get_args(kind))
    if typing.get_origin(kind) is Literal:
        return "choice"
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        return f"list of {'sections' if dataclasses.is_dataclass(item) else _WORDS.get(item, 'choice') + 's'}"
    return _WORDS[typing.get_origin(kind) or kind]


def _default(field: dataclasses.Field) -> str:
    if field.default is not dataclasses.MISSING:
        return repr(field.default)
    if field.default_factory is not dataclasses.MISSING:
        return repr(field.default_factory())
    return ""


def _allowed(kind: Any, field: dataclasses.Field) -> str:
    choices = [c for k in (kind, *typing.get_args(kind)) if typing.get_origin(k) is Literal for c in typing.get_args(k)]
    if choices:
        return ", ".join(map(repr, choices))
    signs = {"least": "≥", "above": ">", "below": "<", "most": "≤", "but": "not"}
    given = {sign: field.metadata.get(bound) for bound, sign in signs.items()}
    # Limits far above every real value only protect the readers of files.
    return ", ".join(f"{sign} {value}" for sign, value in given.items() if value is not None and value < _HIGHEST)

"""Parses plain mappings into typed dataclasses, with one-sentence errors."""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from aligner_jax.errors import InputError
from aligner_jax.files.fields import shown
from aligner_jax.files.identity import LATER


def number(
    default: Any = dataclasses.MISSING,
    *,
    least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    most: float | None = None,
    but: float | None = None,
    later: bool = False,
) -> Any:
    """Returns a dataclass field that holds a number (or None) within these bounds, and not the one after `but`.

    Args:
      later: True for a field that a later release added, see `files.identity.later`.
    """
    bounds = {"least": least, "above": above, "below": below, "most": most, "but": but}
    return dataclasses.field(default=default, metadata={**bounds, LATER: later})


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns a clause that ends an error message: the known name that was probably meant, or all known names."""
    leaves = {k.rpartition(".")[2] or k: k for k in known if k}
    # Cut to a length that no real name exceeds, since the search takes quadratic time.
    leaf = name.rpartition(".")[2][:100]
    near = difflib.get_close_matches(leaf, leaves, n=1) or [k for k in leaves if _abbreviates(k, leaf)]
    return f"did you mean {leaves[near[0]]}?" if near else f"there are {', '.join(leaves.values())}"


def _abbreviates(short: str, name: str) -> bool:
    """Returns True if `name` starts with the first letter of `short` and has the others in order: learning_rate, lr."""
    letters = iter(name)
    return name.startswith(short[0]) and all(letter in letters for letter in short)


def parse_section(kind: type, value: Any, name: str) -> Any:
    """Returns an instance of a dataclass made from a mapping of its fields, nested sections included.

    A class whose config section differs from its fields has a static method `arrange`, which maps the section to the
    fields.

    Args:
      kind: the dataclass.
      value: mapping of field names to values.
      name: name of the section for errors, as in "config.optim"; "" names the fields alone.

    Raises:
      InputError: a field is unknown or missing, or a value has the wrong type or is out of range; gives the full name.
    """
    if not isinstance(value, Mapping):
        raise InputError(f"{name} is {shown(value)}, but should be a section with fields of its own")
    values = dict(value)
    if arrange := getattr(kind, "arrange", None):
        values = arrange(values)
    prefix = f"{name}." if name else ""
    hints, fields = typing.get_type_hints(kind), {field.name: field for field in dataclasses.fields(kind)}
    for key in values:
        if key not in fields:
            raise InputError(f"{prefix}{key} is not a field; {did_you_mean(str(key), [prefix + f for f in fields])}")
    parsed = {}
    for key, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and dataclasses.is_dataclass(hints[key]):
            values.setdefault(key, {})
        elif required and values.get(key) is None:
            raise InputError(f"{prefix}{key} is not set; set it in the config file or with --{prefix}{key}=…")
        if key in values:
            parsed[key] = _convert(hints[key], field, values[key], f"{prefix}{key}")
    return kind(**parsed)


def _convert(kind: Any, field: dataclasses.Field, value: Any, name: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return parse_section(typing.cast(type, kind), value, name)
    if isinstance(kind, types.UnionType):
        kinds = typing.get_args(kind)
        if value is None and types.NoneType in kinds:
            return None
        kind = next(k for k in kinds if k is not types.NoneType)
        if int in kinds and float in kinds:
            # A field of type int | float keeps the type of the value.
            kind = int if type(value) is int else float
        return _convert(kind, field, value, name)
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        if type(value) is not str or value not in choices:
            raise InputError(f"{name} is {shown(value)}, but should be one of {', '.join(choices)}")
        return value
    if typing.get_origin(kind) is tuple:
        (item_kind, _), word = typing.get_args(kind), _WORDS[tuple]
        if not isinstance(value, list | tuple):
            raise InputError(f"{name} is {shown(value)}, but should be {word}")
        return tuple(_convert(item_kind, field, item, f"{name}[{i}]") for i, item in enumerate(value))
    if kind is float and type(value) is int:
        # float() raises OverflowError for an int of 400 digits.
        value = float(value) if abs(value) < _MAX_FLOAT else math.inf
    expected = typing.get_origin(kind) or kind
    if type(value) is not expected:
        raise InputError(f"{name} is {shown(value)}, but should be {_WORDS[expected]}")
    for key, item in value.items() if kind == dict[str, str] else ():
        if type(item) is not str:
            raise InputError(f"{name}.{key} is {shown(item)}, but should be text")
    _check_range(field, value, name)
    return value


# Seeds are the largest integers of a config.
_MAX_INTEGER, _MAX_FLOAT = 2**32, 10**300

_WORDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    dict: "a section",
    tuple: "a list",
}


def _check_range(field: dataclasses.Field, value: Any, name: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{name} is {value}, but should be finite")
    least, above, below, most, but = (field.metadata.get(bound) for bound in ("least", "above", "below", "most", "but"))
    if least is not None and value < least:
        raise InputError(f"{name} is {shown(value)}, but should be {least} or more")
    if above is not None and value <= above:
        raise InputError(f"{name} is {shown(value)}, but should be greater than {above}")
    if below is not None and value >= below:
        raise InputError(f"{name} is {shown(value)}, but should be less than {below}")
    if most is None and below is None and type(value) is int:
        most = _MAX_INTEGER
    if most is not None and value > most:
        raise InputError(f"{name} is {shown(value)}, but should be {most} or less")
    if but is not None and value == but:
        raise InputError(f"{name} is {value}, but should be {least} or more, and not {but}")

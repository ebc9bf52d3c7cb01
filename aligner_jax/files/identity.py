"""Selects the fields of a record that enter its digest."""

import dataclasses
from typing import Any

LATER = "later"


def later(default: Any) -> Any:
    """Returns a dataclass field that a later release adds: at its default it changes no digest."""
    return dataclasses.field(default=default, metadata={LATER: True})


def identity(record: Any) -> dict[str, Any]:
    """Returns a dataclass instance's fields as nested dicts, without `later` fields that have their defaults.

    Records thus keep the digests that earlier releases gave them.
    """
    fields = {}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if field.metadata.get(LATER) and value == field.default:
            continue
        fields[field.name] = _identity(value)
    return fields


def _identity(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_identity, value))
    return identity(value) if dataclasses.is_dataclass(value) else value

"""The fields of a record that count where it is told from another by a digest."""

import dataclasses
from typing import Any

LATER = "later"


def later(default: Any) -> Any:
    """A dataclass field that a later release added: at its default it changes no digest."""
    return dataclasses.field(default=default, metadata={LATER: True})


def identity(record: Any) -> dict[str, Any]:
    """Returns a dataclass instance's fields as nested dicts, without `later` fields that are at their defaults.

    So records have the digests that earlier releases gave them.
    """
    fields = {}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if field.metadata.get(LATER) and value == field.default:
            continue
        fields[field.name] = identity(value) if dataclasses.is_dataclass(value) else value
    return fields

"""Checked values of a record's fields."""

from aligner_jax.errors import InputError


def text_field(record: dict, name: str, where: str, default: str | None = None) -> str:
    """The string under `name`; `default`, where there is one, stands for a missing field or null.

    Raises:
      InputError: the field is missing, is not a string, or has half a surrogate pair in it.
    """
    value = record.get(name)
    if type(value) is str and value.isascii():
        return value
    if value is None and default is not None:
        return default
    return check_text(_present(record, name, where), f"the field {name!r}", where)


def check_text(value: object, what: str, where: str) -> str:
    """The value, if it is text.

    Raises:
      InputError: it is not, or has half a surrogate pair in it; `what` names it in the sentence.
    """
    if not isinstance(value, str):
        raise InputError(f"{where}: {what} holds {kind(value)}, not text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(f"{where}: {what} holds half a surrogate pair, which is no character") from None
    return value


def flag_field(record: dict, name: str, where: str) -> bool:
    """The true or false under `name`.

    Raises:
      InputError: the field is missing, or is something else.
    """
    value = _present(record, name, where)
    if not isinstance(value, bool):
        raise InputError(f"{where}: the field {name!r} holds {kind(value)}, not true or false")
    return value


def list_field(record: dict, name: str, where: str, of: str) -> list[dict]:
    """The list of objects under `name`; `of` says in the error what they should be.

    Raises:
      InputError: the field is missing, or is something else.
    """
    value = _present(record, name, where)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise InputError(f"{where}: the field {name!r} is not a list of objects with {of}")
    return value


def kind(value: object) -> str:
    """What a value is, in JSON's words where JSON has any."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    kinds = {dict: "an object", list: "an array", str: "a string", int: "a number", float: "a number", bytes: "bytes"}
    return kinds.get(type(value), f"a {type(value).__name__}")


def _present(record: dict, name: str, where: str) -> object:
    if name not in record:
        present = ", ".join(map(repr, record)) or "none"
        raise InputError(f"{where}: the record has no field {name!r}; its fields are {present}")
    return record[name]

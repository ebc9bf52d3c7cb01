"""Returns fields of a record after a check of their types."""

from aligner_jax.errors import InputError


def text_field(record: dict, name: str, where: str, default: str | None = None) -> str:
    """Returns the string in the field `name`, or `default`, if given, for a missing field or null.

    Raises:
      InputError: the field is missing, is not a string, or contains half a surrogate pair.
    """
    value = record.get(name)
    if type(value) is str and value.isascii():
        return value
    if value is None and default is not None:
        return default
    return check_text(_present(record, name, where), f"the field {name!r}", where)


def check_text(value: object, what: str, where: str) -> str:
    """Returns the value if it is text.

    Raises:
      InputError: the value is not a string or contains half a surrogate pair; `what` names it in the message.
    """
    if not isinstance(value, str):
        raise InputError(f"{where}: {what} holds {kind(value)}, not text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(f"{where}: {what} holds half a surrogate pair, which is no character") from None
    return value


def flag_field(record: dict, name: str, where: str) -> bool:
    """Returns the boolean in the field `name`.

    Raises:
      InputError: the field is missing or is not a boolean.
    """
    value = _present(record, name, where)
    if not isinstance(value, bool):
        raise InputError(f"{where}: the field {name!r} holds {kind(value)}, not true or false")
    return value


def list_field(record: dict, name: str, where: str, of: str) -> list[dict]:
    """Returns the list of objects in the field `name`; `of` names their fields in the error message.

    Raises:
      InputError: the field is missing or is not a list of objects.
    """
    value = _present(record, name, where)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise InputError(f"{where}: the field {name!r} is not a list of objects with {of}")
    return value


def kind(value: object) -> str:
    """Returns the name of a value's type, with JSON's name if it has one."""
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

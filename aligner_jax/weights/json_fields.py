"""A JSON file of a checkpoint, whose fields are typed and whose errors name the file and the field."""

import json
from collections.abc import Mapping
from pathlib import Path

from aligner_jax.errors import InputError


class JsonFields:
    """Typed access to a JSON object, with errors that name the file and the field."""

    def __init__(self, values: Mapping[str, object], file: Path, prefix: str = ""):
        self.values, self.file, self.prefix = values, file, prefix

    def get(self, name: str) -> object:
        return self.values.get(name)

    def error(self, name: str, problem: str) -> InputError:
        return InputError(f"{self.file}: {self.prefix}{name} {problem}")

    def integer(self, name: str, default: int | None = None) -> int:
        value = self.get(name)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise self.error(name, "is missing" if value is None else f"is {value!r}, not a positive integer")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self.get(name)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise self.error(name, "is missing" if value is None else f"is {value!r}, not a positive number")
        return float(value)

    def flag(self, name: str) -> bool:
        value = self.get(name)
        if value not in (None, True, False):
            raise self.error(name, f"is {value!r}, not true or false")
        return bool(value)

    def section(self, name: str) -> "JsonFields | None":
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.error(name, f"is {value!r}, not an object")
        return JsonFields(value, self.file, f"{self.prefix}{name}.")


def read_json_fields(file: Path) -> JsonFields:
    """The object in a JSON file.

    Raises:
      InputError: there is no such file, or it is not a JSON object; names the line where one is wrong.
    """
    if not file.is_file():
        raise InputError(f"there is no file {file}")
    try:
        values = json.loads(file.read_bytes())
    except json.JSONDecodeError as error:
        raise InputError(f"{file}:{error.lineno} is not JSON ({error.msg})") from None
    except UnicodeDecodeError:
        raise InputError(f"{file} is not JSON (it is not text)") from None
    if not isinstance(values, dict):
        raise InputError(f"{file} is not a JSON object")
    return JsonFields(values, file)

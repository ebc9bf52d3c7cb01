"""Reads typed, bounded fields of an object in a file; errors name the file and the field.

Every number from a file is read here, because plain checks miss cases: `value <= 0` lets NaN pass, `isinstance(True,
int)` is true, and the text "no" is true as a flag.
"""

import math
from collections.abc import Collection, Mapping
from pathlib import Path

from aligner_jax.errors import InputError
from aligner_jax.files.json_text import read_object

MAX_INTEGER = 2**31 - 1
"""Largest size, count or position, since they become int32."""
MAX_NUMBER = 1e30
"""Largest constant of a model; its inverse is the smallest. Both are far inside the range of float32."""


class Fields:
    """Typed access to the fields of one object. A field with the value null counts as absent.

    Attributes:
      values: values by field name.
      file: path of the file, or other text with which errors begin.
      prefix: prefix of field names in errors, such as "rope_scaling.".
    """

    def __init__(self, values: Mapping[str, object], file: str | Path, prefix: str = "") -> None:
        self.values, self.file, self.prefix = values, file, prefix

    def get(self, name: str) -> object:
        """Returns the unchecked value of a field, None if it is absent."""
        return self.values.get(name)

    def has(self, name: str) -> bool:
        """Returns True if the field is present and not null."""
        return self.get(name) is not None

    def error(self, name: str, problem: str) -> InputError:
        """Returns an error about a field, with file, name and `problem`."""
        return InputError(f"{self.file}: {self.prefix}{name} {problem}")

    def integer(self, name: str, default: int | None = None, *, least: int = 1, most: int = MAX_INTEGER) -> int:
        """Returns an integer from `least` to `most`, or `default` if the field is absent.

        Raises:
          InputError: the field is absent without a default, of another type or out of range.
        """
        value = self.get(name)
        if value is None and default is not None:
            return default
        if type(value) is not int:
            raise self._wrong(name, value, "a positive integer" if least == 1 else "an integer")
        if not least <= value <= most:
            bounds = f"of at most {most}" if least == 1 else f"from {least} to {most}"
            raise self._wrong(name, value, f"a positive integer {bounds}" if least == 1 else f"an integer {bounds}")
        return value

    def number(
        self, name: str, default: float | None = None, *, least: float = 1 / MAX_NUMBER, most: float = MAX_NUMBER
    ) -> float:
        """Returns a finite number from `least` to `most` as a float, or `default` if the field is absent.

        The default bounds allow positive numbers only.

        Raises:
          InputError: the field is absent without a default, of another type, not finite or out of range.
        """
        value = self.get(name)
        if value is None and default is not None:
            return default
        kind = "a positive number" if least > 0 else "a number"
        if type(value) not in (int, float):
            raise self._wrong(name, value, kind)
        assert isinstance(value, int | float)
        # The range is checked before `isfinite`, which cannot convert an int of 400 digits.
        if not least <= value <= most or not math.isfinite(value):
            raise self._wrong(name, value, f"{kind} from {least:g} to {most:g}")
        return float(value)

    def flag(self, name: str, default: bool = False) -> bool:
        """Returns a bool, `default` if the field is absent. Raises InputError for other values, 0 and 1 included."""
        value = self.get(name)
        if value is None:
            return default
        if type(value) is not bool:
            raise self._wrong(name, value, "true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """Returns text, or `default` if the field is absent. Raises InputError for other values."""
        value = self.get(name)
        if value is None and default is not None:
            return default
        if type(value) is not str:
            raise self._wrong(name, value, "text")
        return value

    def choice(self, name: str, choices: Collection[str], default: str | None = None) -> str:
        """Returns one of `choices`, or `default` if the field is absent. Raises InputError for other values."""
        value = self.get(name)
        if value is None and default is not None:
            return default
        if type(value) is not str or value not in choices:
            raise self._wrong(name, value, f"one of {', '.join(choices)}")
        return value

    def texts(self, name: str) -> list[str]:
        """Returns a list of texts, empty if the field is absent. Raises InputError for other values."""
        value = self.get(name)
        if value is None:
            return []
        if not isinstance(value, list) or not all(type(item) is str for item in value):
            raise self._wrong(name, value, "a list of texts")
        return value

    def integers(self, name: str, *, least: int = 1, most: int = MAX_INTEGER) -> list[int]:
        """Returns a list of integers from `least` to `most`, empty if the field is absent.

        Raises:
          InputError: the field is no such list.
        """
        value = self.get(name)
        if value is None:
            return []
        if not isinstance(value, list) or not all(type(item) is int and least <= item <= most for item in value):
            raise self._wrong(name, value, f"a list of integers from {least} to {most}")
        return value

    def numbers(self, name: str, *, least: float, most: float) -> list[float]:
        """Returns a list of numbers from `least` to `most`, empty if the field is absent.

        Raises:
          InputError: the field is no such list.
        """
        value = self.get(name)
        if value is None:
            return []
        if not isinstance(value, list) or not all(type(x) in (int, float) and least <= x <= most for x in value):
            raise self._wrong(name, value, f"a list of numbers from {least:g} to {most:g}")
        return [float(x) for x in value]

    def sections(self, name: str, *, most: int) -> "list[Fields]":
        """Returns a list of at most `most` objects, empty if the field is absent.

        Raises:
          InputError: the field is no such list.
        """
        value = self.get(name)
        if value is None:
            return []
        if not isinstance(value, list) or len(value) > most or not all(isinstance(item, dict) for item in value):
            raise self._wrong(name, value, f"a list of at most {most} objects")
        return [Fields(item, self.file, f"{self.prefix}{name}[{i}].") for i, item in enumerate(value)]

    def section(self, name: str) -> "Fields | None":
        """Returns the object in a field, None if it is absent. Raises InputError for other values."""
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self._wrong(name, value, "an object")
        return Fields(value, self.file, f"{self.prefix}{name}.")

    def _wrong(self, name: str, value: object, wanted: str) -> InputError:
        return self.error(name, "is missing" if value is None else f"is {shown(value)}, not {wanted}")


def read_fields(path: str | Path) -> Fields:
    """Returns the fields of the object in a JSON file.

    Raises:
      InputError: the file does not exist or holds no JSON object; the message names the line of a syntax error.
    """
    return Fields(read_object(path), path)


def shown(value: object) -> str:
    """Returns a shortened `repr`, without making the full one of a large value."""
    if isinstance(value, str):
        return repr(value[:100] + "…" if len(value) > 100 else value)
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list | tuple):
        return repr(value) if len(value) <= 8 and all(type(x) in (int, float, bool) for x in value) else "a list"
    if isinstance(value, int) and abs(value) > 10**30:
        return "a number of more than 30 digits"
    shown = repr(value)
    return shown if len(shown) <= 100 else f"{shown[:100]}…"

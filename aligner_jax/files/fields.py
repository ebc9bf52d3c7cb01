"""Typed, bounded fields of an object that a file holds; errors name the file and the field.

Every number that a file gives goes through here. A comparison such as `value <= 0` lets NaN pass, `isinstance(True,
int)` is true, and the text "no" is true where a flag is asked for.
"""

import math
from collections.abc import Collection, Mapping
from pathlib import Path

from aligner_jax.errors import InputError
from aligner_jax.files.json_text import read_object

MOST_INTEGER = 2**31 - 1
"""The largest whole number that sizes, counts and positions may be: they become int32."""
MOST_NUMBER = 1e30
"""The largest number that constants of a model may be; its inverse is the smallest. Both are far inside float32."""


class Fields:
    """Typed access to the fields of one object. A field that holds null counts as absent.

    Attributes:
      values: the fields by name.
      file: where they are from; a path, or any text that errors should begin with.
      prefix: of the fields' names in errors, such as "rope_scaling.".
    """

    def __init__(self, values: Mapping[str, object], file: str | Path, prefix: str = "") -> None:
        self.values, self.file, self.prefix = values, file, prefix

    def get(self, name: str) -> object:
        """Returns the field as it is; None where it is absent."""
        return self.values.get(name)

    def has(self, name: str) -> bool:
        """Returns True if the field is there, and is not null."""
        return self.get(name) is not None

    def error(self, name: str, problem: str) -> InputError:
        """Returns the error of a field: file, name and `problem`."""
        return InputError(f"{self.file}: {self.prefix}{name} {problem}")

    def integer(self, name: str, default: int | None = None, *, least: int = 1, most: int = MOST_INTEGER) -> int:
        """Returns a whole number from `least` to `most`; `default`, where there is one, stands for an absent field.

        Raises:
          InputError: the field is absent, of another type or out of range.
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
        self, name: str, default: float | None = None, *, least: float = 1 / MOST_NUMBER, most: float = MOST_NUMBER
    ) -> float:
        """Returns a finite number from `least` to `most`, as a float. By default it is positive.

        Raises:
          InputError: the field is absent, of another type, not finite or out of range.
        """
        value = self.get(name)
        if value is None and default is not None:
            return default
        kind = "a positive number" if least > 0 else "a number"
        if type(value) not in (int, float):
            raise self._wrong(name, value, kind)
        assert isinstance(value, int | float)
        # An int first: one of 400 digits is no float.
        if not least <= value <= most or not math.isfinite(value):
            raise self._wrong(name, value, f"{kind} from {least:g} to {most:g}")
        return float(value)

    def flag(self, name: str, default: bool = False) -> bool:
        """Returns true or false; an absent field is `default`. Raises InputError for any other value, 0 and 1 too."""
        value = self.get(name)
        if value is None:
            return default
        if type(value) is not bool:
            raise self._wrong(name, value, "true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """Returns text. Raises InputError where the field is absent without a default, or is none."""
        value = self.get(name)
        if value is None and default is not None:
            return default
        if type(value) is not str:
            raise self._wrong(name, value, "text")
        return value

    def choice(self, name: str, choices: Collection[str], default: str | None = None) -> str:
        """Returns one of `choices`. Raises InputError for anything else."""
        value = self.get(name)
        if value is None and default is not None:
            return default
        if type(value) is not str or value not in choices:
            raise self._wrong(name, value, f"one of {', '.join(choices)}")
        return value

    def texts(self, name: str) -> list[str]:
        """Returns a list of texts; an absent field is an empty one. Raises InputError for any other value."""
        value = self.get(name)
        if value is None:
            return []
        if not isinstance(value, list) or not all(type(item) is str for item in value):
            raise self._wrong(name, value, "a list of texts")
        return value

    def integers(self, name: str, *, least: int = 1, most: int = MOST_INTEGER) -> list[int]:
        """Returns a list of whole numbers from `least` to `most`; an absent field is an empty one.

        Raises:
          InputError: the field is something else.
        """
        value = self.get(name)
        if value is None:
            return []
        if not isinstance(value, list) or not all(type(item) is int and least <= item <= most for item in value):
            raise self._wrong(name, value, f"a list of integers from {least} to {most}")
        return value

    def section(self, name: str) -> "Fields | None":
        """Returns the object in a field, None where it is absent. Raises InputError for any other value."""
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
      InputError: there is no such file, or it is not a JSON object; names the line where one is wrong.
    """
    return Fields(read_object(path), path)


def shown(value: object) -> str:
    """Returns `repr`, cut: that of a 3 MB value would be made to be thrown away."""
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

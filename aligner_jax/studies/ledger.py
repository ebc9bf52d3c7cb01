"""Results of a study on disk: one JSON file per run with the settings that made it, so that a study can go on later."""

import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from aligner_jax.errors import InputError
from aligner_jax.files.json_text import parse_json
from aligner_jax.runtime.files import write_atomically
from aligner_jax.runtime.nonfinite import finite_or_none
from aligner_jax.runtime.same_run import differences

Settings = Mapping[str, Any]


class Ledger:
    """Results by name, in the files NAME.json of a folder; a slash of a name is a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, name: str, settings: Settings, fields: Collection[str] = ()) -> dict[str, Any] | None:
        """Returns a result; None if there is none. Numbers that were not finite are NaN.

        Args:
          name: name of the result.
          settings: settings that it should have been made with.
          fields: fields that it should have.

        Raises:
          InputError: the result was made with other settings, which the message names, or its file is damaged.
        """
        path = self.path(name)
        if not path.exists():
            return None
        try:
            found = parse_json(path.read_text(encoding="utf-8"), str(path))
            was, result = _parts(found)
            if missing := set(fields) - set(result):
                raise KeyError(min(missing))
        except (OSError, ValueError, KeyError, TypeError, InputError) as error:
            raise InputError(
                f"{path} cannot be used ({type(error).__name__}): remove it to have it made anew"
            ) from error
        if changes := differences(was, settings):
            raise InputError(f"{path} was made with other settings ({changes}): use those, or choose another --out")
        return with_nan(result)

    def put(self, name: str, settings: Settings, result: Mapping[str, Any]) -> None:
        """Writes a result, atomically. Raises InputError if it cannot be written."""
        text = json.dumps({"settings": settings, "result": finite_or_none(dict(result))}, indent=1)
        write_atomically(self.path(name), text + "\n")

    def path(self, name: str) -> Path:
        """Returns the file of a name."""
        return self.folder / f"{name}.json"


def _parts(found: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    return dict(found["settings"]), dict(found["result"])


def with_nan(value: Any) -> Any:
    """Replaces null by NaN: a result has no other use of null, and JSON has no NaN."""
    if isinstance(value, dict):
        return {name: with_nan(each) for name, each in value.items()}
    if isinstance(value, list):
        return [with_nan(each) for each in value]
    return math.nan if value is None else value

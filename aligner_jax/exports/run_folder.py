"""Data, settings and last held-out results of a training run, read from its folder."""

import dataclasses
import re
import sys
from collections.abc import Mapping
from pathlib import Path, PurePath

from aligner_jax.errors import InputError
from aligner_jax.files.content import MEBIBYTE, exists, is_folder, read_text
from aligner_jax.files.fields import read_fields
from aligner_jax.files.json_text import parse_object

_HELDOUT = re.compile(r"heldout_[a-z_]+")
# Section and name of a setting, and the words for it.
_SETTINGS = {
    ("objective", "name"): "objective",
    ("data", "format"): "format of the data",
    ("data", "sequence_length"): "sequence length",
    ("data", "batch_size"): "rows per step",
    ("optim", "lr"): "learning rate",
    ("optim", "schedule"): "schedule",
}


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """A run.

    Attributes:
      data: last part of the path of the training data; empty if unknown. The rest of the path concerns the user alone.
      settings: settings by their words.
      heldout: the last held-out results by name, such as "heldout_loss"; empty without held-out data.
      heldout_step: the step after which they were measured.
    """

    data: str
    settings: Mapping[str, str]
    heldout: Mapping[str, float]
    heldout_step: int | None


def read_run_folder(folder: str | Path) -> RunFolder:
    """Reads config.json and metrics.jsonl of a run.

    Raises:
      InputError: there is no folder of a run, or a file of it is damaged.
    """
    folder = Path(folder)
    if not is_folder(folder) or not exists(folder / "config.json"):
        raise InputError(f"{folder} is not the folder of a run: it has no config.json")
    config = read_fields(folder / "config.json")
    settings = {}
    for (section, name), words in _SETTINGS.items():
        values = config.section(section)
        if values is not None and isinstance(value := values.get(name), str | int | float):
            settings[words] = f"{value:g}" if isinstance(value, float) else str(value)
    if config.has("steps"):
        settings["steps"] = f"{config.integer('steps'):,}"
    data = config.section("data")
    path = data.text("path", "") if data is not None else ""
    step, heldout = _last_heldout(folder / "metrics.jsonl")
    return RunFolder(PurePath(path).name, settings, heldout, step)


def run_beside(adapter: Path) -> RunFolder | None:
    """Returns the run in whose folder an adapter's file is; None if the folder is not that of a run.

    Raises:
      InputError: a file of the run is damaged.
    """
    folder = adapter.parent
    is_run = exists(folder / "config.json") and exists(folder / "metrics.jsonl")
    return read_run_folder(folder) if is_run else None


def _last_heldout(path: Path) -> tuple[int | None, dict[str, float]]:
    found: tuple[int | None, dict[str, float]] = None, {}
    if not exists(path):
        return found
    lines = read_text(path, most=512 * MEBIBYTE).splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        # A killed run may leave an incomplete last line.
        if '"heldout_' not in line or not line.endswith("\n"):
            continue
        values = parse_object(line.strip(), f"{path}:{number}")
        heldout = {name: value for name, value in values.items() if _HELDOUT.fullmatch(name) and _is_finite(value)}
        if heldout and type(step := values.get("step")) is int:
            found = step, {name: float(value) for name, value in heldout.items()}  # pyright: ignore[reportArgumentType]
    return found


def _is_finite(value: object) -> bool:
    # An integer of JSON may be larger than any float.
    return type(value) in (int, float) and abs(value) <= sys.float_info.max  # pyright: ignore[reportArgumentType]

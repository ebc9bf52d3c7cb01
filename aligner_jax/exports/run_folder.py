"""Data, settings and last held-out results of a training run, read from its folder."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path, PurePath

from aligner_jax.errors import InputError
from aligner_jax.files.content import exists, is_folder
from aligner_jax.files.fields import read_fields
from aligner_jax.runtime.history import FILE, metric_lines

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
    step, heldout = _last_heldout(folder / FILE)
    return RunFolder(PurePath(path).name, settings, heldout, step)


def run_beside(adapter: Path) -> RunFolder | None:
    """Returns the run in whose folder an adapter's file is; None if the folder is not that of a run.

    Raises:
      InputError: a file of the run is damaged.
    """
    folder = adapter.parent
    is_run = exists(folder / "config.json") and exists(folder / FILE)
    return read_run_folder(folder) if is_run else None


def _last_heldout(path: Path) -> tuple[int | None, dict[str, float]]:
    found: tuple[int | None, dict[str, float]] = None, {}
    if not exists(path):
        return found
    for line in metric_lines(path):
        heldout = {name: float(x) for name, x in line.items() if _HELDOUT.fullmatch(name) and x is not None}
        found = (line["step"], heldout) if heldout else found
    return found

"""Curves of training runs, read from their folders: losses, rates, speeds and held-out metrics over steps."""

import dataclasses
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from aligner_jax.errors import InputError
from aligner_jax.files.content import exists, is_folder
from aligner_jax.files.fields import read_fields
from aligner_jax.runtime.history import FILE, read_metrics

_MOST_CURVES = 64
_LARGEST = 1e30
"""Largest value that is drawn: axes cannot span the largest floats."""
_METRICS = ("loss", "heldout_loss", "heldout_accuracy", "learning_rate")
_OF_AN_ADAPTER = re.compile(r"loss_(\d{1,4})")


@dataclasses.dataclass(frozen=True)
class Curve:
    """A metric over steps. Values that were not finite, or are beyond ±1e30, are NaN."""

    steps_s: Int[np.ndarray, " s"]
    values_s: Float[np.ndarray, " s"]

    def __len__(self) -> int:
        return len(self.steps_s)


@dataclasses.dataclass(frozen=True)
class Course:
    """Metrics of one adapter of a run.

    Attributes:
      label: name of the run; in a sweep with the adapter's number and, if the sweep is one of rates, its rate.
      lines: lines of metrics, in which the adapter's metrics have no number.
      base_loss: held-out loss of the base alone in nats a token; None without a report.
      is_sft: True if the loss is a mean over tokens.
    """

    label: str
    lines: Sequence[dict[str, Any]]
    base_loss: float | None
    is_sft: bool

    def curve(self, metric: str) -> Curve:
        """Returns a metric over steps, the last value of a step where there are several; empty without the metric."""
        values = {line["step"]: line[metric] for line in self.lines if metric in line}
        steps = sorted(values)
        values_s = np.asarray([math.nan if values[step] is None else float(values[step]) for step in steps], np.float64)
        return Curve(np.asarray(steps, np.int64), np.where(np.abs(values_s) <= _LARGEST, values_s, math.nan))


def read_courses(folders: Sequence[str | Path]) -> list[Course]:
    """Returns the courses of runs: one a run, or one for every adapter of a sweep.

    Raises:
      InputError: a folder is not that of a run, has no metrics yet or a damaged file, or there are too many adapters.
    """
    names = _names([Path(folder) for folder in folders])
    found = [course for folder, name in zip(folders, names, strict=True) for course in _courses(Path(folder), name)]
    if len(found) > _MOST_CURVES:
        raise InputError(
            f"the runs have {len(found)} adapters, but a figure has at most {_MOST_CURVES} curves: give fewer --run"
        )
    return found


def _courses(folder: Path, name: str) -> list[Course]:
    path = folder / FILE
    if not is_folder(folder) or not exists(path):
        raise InputError(f"{folder} is not the folder of a run: it has no {FILE}")
    lines = read_metrics(path)
    if not lines:
        raise InputError(f"{path} has no line of metrics yet")
    config = folder / "config.json"
    objective = read_fields(config).section("objective") if exists(config) else None
    is_sft = objective is None or objective.text("name", "sft") == "sft"
    numbers = sorted({int(found[1]) for line in lines for key in line if (found := _OF_AN_ADAPTER.fullmatch(key))})
    if not numbers:
        if not any(metric in line for line in lines for metric in _METRICS):
            raise InputError(f"{path} has no losses yet")
        return [Course(name, lines, _base_loss(folder), is_sft)]
    return [
        Course(f"{name}: {_adapter(lines, number)}", [_of_adapter(line, number) for line in lines], None, is_sft)
        for number in numbers
    ]


def _of_adapter(line: dict[str, Any], number: int) -> dict[str, Any]:
    """Returns the metrics of one adapter of a sweep, by the names that they have in other runs."""
    own = {key.removesuffix(f"_{number}"): value for key, value in line.items() if key.endswith(f"_{number}")}
    shared = ("step", "tokens_per_second", "seconds")
    rate = {"learning_rate": line["learning_rate"]} if "learning_rate" in line else {}
    return {**{key: line[key] for key in shared if key in line}, **rate, **own}


def _adapter(lines: Sequence[dict[str, Any]], number: int) -> str:
    rates = [line[f"learning_rate_{number}"] for line in lines if line.get(f"learning_rate_{number}") is not None]
    return f"adapter {number}, rate {max(rates):.2g}" if rates else f"adapter {number}"


def _base_loss(folder: Path) -> float | None:
    path = folder / "report.json"
    if not exists(path):
        return None
    before = read_fields(path).section("before")
    # The first measurement in a report on preferences is the initial adapter's.
    if before is None or not before.has("heldout_loss"):
        return None
    return before.number("heldout_loss", least=0.0, most=_LARGEST)


def _names(folders: Sequence[Path]) -> list[str]:
    """Returns the folders' own names, with as many parents as make them distinct."""
    for parts in range(1, 12):
        names = ["/".join(folder.absolute().parts[-parts:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    raise InputError("one run is given twice; give each --run once")

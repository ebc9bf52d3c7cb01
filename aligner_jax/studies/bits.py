"""Success of a study's adapters when they are rounded to fewer bytes."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from aligner_jax.evals.estimates import Estimate
from aligner_jax.peft.compact import DTYPES, AdapterDtype
from aligner_jax.studies.arms import Arm
from aligner_jax.studies.curve_table import percent
from aligner_jax.studies.figures import COLOURS, OTHER, figure, save
from aligner_jax.studies.outcomes import Outcomes
from aligner_jax.studies.results import Cell
from aligner_jax.studies.study import Study
from aligner_jax.studies.table_text import markdown

_MARKERS = ("o-", "s--", "^:", "D-.")
"""Markers and lines of the arms of one kind, which share a colour."""


@dataclasses.dataclass(frozen=True)
class Compact:
    """An arm's adapters in a dtype, over all tasks of a family and all seeds.

    Attributes:
      arm, kind: name and kind of the arm.
      dtype: dtype of the files.
      nbytes: mean bytes of the arrays in a file.
      bits: bits per parameter.
      success: share of prompts that are a success, with its 95 % interval.
    """

    arm: str
    kind: str
    dtype: AdapterDtype
    nbytes: float
    bits: float
    success: Estimate


def measure(study: Study, tasks: Sequence[str], arms: Sequence[Arm], seeds: int) -> tuple[list[Compact], bool]:
    """Answers the prompts of a family's tasks with rounded adapters, unless the answers are known.

    Args:
      study: a study that has run.
      tasks: tasks of a family with checks.
      arms: arms; those that are not whole in the family are left out, and those whose time has run out.
      seeds: seeds of every arm and task.

    Returns:
      The results, and True if none is missing.
    """
    found, complete = [], True
    for arm in arms:
        if not study.is_whole(arm.name, tasks):
            complete = False
            continue
        rate = study.rate(arm.name, tasks[0])
        assert rate is not None
        cells = [Cell(task, arm.name, seed, rate) for seed in range(seeds) for task in tasks]
        for dtype in DTYPES:
            measured = {cell: one for cell in cells if (one := study.measure_rounded(cell, dtype)) is not None}
            if len(measured) < len(cells):
                complete = False
                continue
            right = {(cell.seed, cell.task): values for cell, (_, values) in measured.items()}
            outcomes = Outcomes.of(right, {task: study.questions(task) for task in tasks})
            assert outcomes is not None
            nbytes = sum(size for size, _ in measured.values()) / len(measured)
            bits = 8 * nbytes / study.results[cells[0]].parameters
            found.append(Compact(arm.name, arm.kind, dtype, nbytes, bits, outcomes.success))
    return found, complete


def table(family: str, measured: Sequence[Compact]) -> str:
    """Returns the table of success by arm and dtype; "" if there is none."""
    rows = [
        [each.arm, each.dtype, f"{each.nbytes:,.0f}", f"{each.bits:.1f}", percent(each.success)] for each in measured
    ]
    header = ["arm", "dtype", "bytes", "bits per parameter", "success"]
    return f"### {family} in fewer bytes\n\n{markdown(header, rows)}" if rows else ""


def plot(family: str, measured: Sequence[Compact], path: Path) -> list[Path]:
    """Writes the figure of success against bytes, and returns its files."""
    with figure(6, 4) as (drawn, axes):
        of_kind: dict[str, Iterator[str]] = {each.kind: itertools.cycle(_MARKERS) for each in measured}
        for arm in dict.fromkeys(each.arm for each in measured):
            points = sorted((each for each in measured if each.arm == arm), key=lambda each: each.nbytes)
            values = [100 * each.success.value for each in points]
            below = [100 * (each.success.value - each.success.low) for each in points]
            above = [100 * (each.success.high - each.success.value) for each in points]
            style = next(of_kind[points[0].kind])
            axes.errorbar(
                [each.nbytes for each in points], values, yerr=[below, above], fmt=style, capsize=3, linewidth=1,
                color=COLOURS.get(points[0].kind, OTHER), label=arm,
            )  # fmt: skip
            for each, value in zip(points, values, strict=True):
                axes.annotate(
                    each.dtype, (each.nbytes, value), xytext=(0, -12), textcoords="offset points", ha="center",
                    fontsize=7,
                )  # fmt: skip
        axes.set_xscale("log")
        axes.set_ylim(-4, 106)
        axes.set_xlabel("bytes of an adapter's arrays")
        axes.set_ylabel("success on held-out prompts (%)")
        axes.set_title(f"{family}, 95 % intervals over questions and seeds")
        axes.legend(fontsize=8, loc="lower right")
        return save(drawn, path)

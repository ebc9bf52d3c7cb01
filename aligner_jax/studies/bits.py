"""Success of a study's adapters when they are rounded to fewer bytes."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from aligner_jax.evals.estimates import Estimate
from aligner_jax.peft.compact import DTYPES, AdapterDtype
from aligner_jax.studies.arms import Arm
from aligner_jax.studies.curve_table import markdown, percent
from aligner_jax.studies.figures import COLOURS, OTHER, figure, save
from aligner_jax.studies.outcomes import Outcomes
from aligner_jax.studies.results import Cell
from aligner_jax.studies.study import Study

_LINES = ("-", "--", ":", "-.")
"""Lines of the arms of one kind, which share a colour."""
_MARKERS = dict(zip(DTYPES, ("o", "s", "^", "D", "v"), strict=True))


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
        of_kind: dict[str, Iterator[str]] = {each.kind: itertools.cycle(_LINES) for each in measured}
        for arm in dict.fromkeys(each.arm for each in measured):
            points = sorted((each for each in measured if each.arm == arm), key=lambda each: each.nbytes)
            colour, style = COLOURS.get(points[0].kind, OTHER), next(of_kind[points[0].kind])
            values = [100 * each.success.value for each in points]
            axes.plot([each.nbytes for each in points], values, style, color=colour, linewidth=1, label=arm)
            for each, value in zip(points, values, strict=True):
                below, above = value - 100 * each.success.low, 100 * each.success.high - value
                axes.errorbar(
                    each.nbytes, value, yerr=[[below], [above]], fmt=_MARKERS[each.dtype], capsize=3, linewidth=1,
                    markersize=5, color=colour,
                )  # fmt: skip
        for dtype, marker in _MARKERS.items():
            axes.plot([], [], marker, color=OTHER, markersize=5, label=dtype)
        axes.set_xscale("log")
        axes.set_ylim(min(100 * each.success.low for each in measured) - 8, 104)
        axes.set_xlabel("bytes of an adapter's arrays")
        axes.set_ylabel("success on held-out prompts (%)")
        axes.set_title(f"{family}, 95 % intervals over questions and seeds")
        axes.legend(fontsize=7, ncols=2, loc="lower right")
        return save(drawn, path)

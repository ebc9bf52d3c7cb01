"""Figures of the study: success against trained parameters, parameters that 90 % take, and losses over steps."""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter, ScalarFormatter

from aligner_jax.evals.estimates import Estimate
from aligner_jax.studies.arms import Arm
from aligner_jax.studies.curve import REFERENCE, SHARE, Reached, needed_by_kind
from aligner_jax.studies.figures import COLOURS, OTHER, figure, save
from aligner_jax.studies.study import Study

_STYLES = (".-", ".--", ".:", ".-.")
"""Lines of the arms of one kind, which share a colour."""
_OFFSETS = (5, -5, -15, -25, -35, -45)
"""Places of a label in points: above its interval or, where another label is, below it."""


def plot_family(family: str, base: Estimate | None, arms: Sequence[Reached], path: Path) -> list[Path]:
    """Writes the figure of success, or else of the share of the reference's gain, against trained parameters.

    Returns:
      Its files; none if no arm has either.
    """
    by_success = any(each.success is not None for each in arms)
    shown = [(each, of) for each in arms if (of := each.success if by_success else each.test_share) is not None]
    if not shown:
        return []
    with figure(6, 4) as (drawn, axes):
        if base is not None and by_success:
            axes.axhline(100 * base.value, color=OTHER, linestyle="--", linewidth=1)
            axes.annotate(
                "base", (0.01, 100 * base.value), xycoords=("axes fraction", "data"), va="bottom", color=OTHER
            )
        for each, of in shown:
            _point(axes, each, of)
        for kind in dict.fromkeys(each.kind for each, _ in shown):
            _line(axes, [(each.parameters, 100 * of.value) for each, of in shown if each.kind == kind], kind)
        axes.set_xscale("log")
        lows, highs = [100 * of.low for _, of in shown], [100 * of.high for _, of in shown]
        axes.set_ylim(min(-4, min(lows) - 6), max(112, max(highs) + 6))
        axes.set_xlim(min(each.parameters for each, _ in shown) / 3, max(each.parameters for each, _ in shown) * 3)
        _label(axes, shown)
        axes.set_xlabel("trained parameters")
        if by_success:
            axes.set_ylabel("success on held-out prompts (%)")
            axes.set_title(f"{family}, 95 % intervals over questions and seeds")
        else:
            axes.set_ylabel(f"share of {REFERENCE}'s gain in test loss (%)")
            axes.set_title(f"{family}, 95 % intervals over examples and seeds")
        return save(drawn, path)


def plot_needed(families: Mapping[str, Sequence[Reached]], path: Path) -> list[Path]:
    """Writes the figure of the parameters with which Aligners reach 90 % of the reference's success.

    Returns:
      Its files; none if no family has such a number.
    """
    rows = [(family, arms, numbers) for family, arms in families.items() if (numbers := needed_by_kind(arms))]
    if not rows:
        return []
    with figure(6, 0.9 + 0.8 * len(rows)) as (drawn, axes):
        for row, (_, arms, numbers) in enumerate(rows):
            axes.plot([each.parameters for each in arms if each.arm == REFERENCE], [row], "s", color=COLOURS["lora"])
            most = max(each.parameters for each in arms if each.kind in numbers)
            for offset, (kind, number) in enumerate(numbers.items()):
                place, colour = row + 0.22 * (offset - (len(numbers) - 1) / 2), COLOURS.get(kind, OTHER)
                low, value, high = (min(x, most) for x in (number.low, number.value, number.high))
                axes.plot([low, high], [place, place], color=colour, linewidth=1.2)
                end = ">" if math.isinf(number.value) else "<" if number.value <= number.least else "o"
                axes.plot(value, place, color=colour, marker=end, fillstyle="full" if end == "o" else "none")
                axes.annotate(
                    f"{kind}: {number}", (most, place), (10, 0), textcoords="offset points", va="center",
                    color=colour, fontsize=7,
                )  # fmt: skip
        axes.set_yticks(range(len(rows)), [family for family, _, _ in rows])
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.set_xscale("log")
        axes.set_xlim(right=2 * max(each.parameters for _, arms, _ in rows for each in arms if each.arm == REFERENCE))
        axes.set_xlabel(f"trained parameters for {SHARE:.0%} of {REFERENCE}'s success (squares: {REFERENCE})")
        return save(drawn, path)


def plot_courses(study: Study, task: str, arms_by_name: Mapping[str, Arm], path: Path) -> list[Path]:
    """Writes the figure of held-out losses over steps, of every arm's best run on a task."""
    with figure(6, 4) as (drawn, axes):
        drawn_points, of_kind = [], {arm.kind: itertools.cycle(_STYLES) for arm in arms_by_name.values()}
        for arm in arms_by_name:
            rate = study.rate(arm, task)
            best = [
                result for cell, result in study.results.items()
                if (cell.arm, cell.task, cell.seed, cell.rate) == (arm, task, 0, rate)
            ]  # fmt: skip
            if not best:
                continue
            points = best[0].points[1:]
            drawn_points.append(points)
            axes.plot(
                [p.step for p in points], [p.loss for p in points], next(of_kind[arms_by_name[arm].kind]),
                color=COLOURS.get(arms_by_name[arm].kind, OTHER), label=f"{arm}, {rate:g}: {best[0].end}",
            )  # fmt: skip
        axes.set_xscale("log")
        # A run has a few points, at steps that are no powers of ten.
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xticks(sorted({point.step for points in drawn_points for point in points}))
        axes.set_xlabel("optimizer steps")
        axes.set_ylabel("held-out loss (nats a token)")
        axes.set_title(f"{task}; the rate falls between an arm's last two points")
        if axes.lines:
            axes.legend(fontsize=7)
        return save(drawn, path)


def _point(axes: Axes, each: Reached, success: Estimate) -> None:
    value, low, high = (100 * x for x in (success.value, success.low, success.high))
    axes.errorbar(
        each.parameters, value, yerr=[[value - low], [high - value]], fmt="o", color=COLOURS.get(each.kind, OTHER),
        markersize=5, capsize=3, linewidth=1.2,
    )  # fmt: skip


def _label(axes: Axes, shown: Sequence[tuple[Reached, Estimate]]) -> None:
    """Writes the names of arms, none over another as long as there are places for it.

    Scales and limits of the axes are those of the finished figure.
    """
    taken = []
    for each, success in shown:
        for offset in _OFFSETS:
            end = 100 * (success.high if offset > 0 else success.low)
            label = axes.annotate(
                each.arm, (each.parameters, end), xytext=(0, offset), textcoords="offset points", ha="center",
                va="bottom" if offset > 0 else "top", color=COLOURS.get(each.kind, OTHER), fontsize=8,
            )  # fmt: skip
            box = label.get_window_extent()
            if offset == _OFFSETS[-1] or not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            label.remove()


def _line(axes: Axes, points: Sequence[tuple[int, float]], kind: str) -> None:
    if len(points) > 1:
        axes.plot(*zip(*points, strict=True), color=COLOURS.get(kind, OTHER), linewidth=0.8, alpha=0.6)

"""Builds the section on training runs: their curves, and a table of where they ended."""

from collections.abc import Sequence

import numpy as np

from aligner_jax.analysis.curve_figures import speed_curves, training_curves
from aligner_jax.analysis.curves import Course, Curve
from aligner_jax.analysis.report import Cell, Section, Table

_TEXT = (
    "A point of the training loss is the mean of the steps since the last point, each on other rows; the held-out loss "
    "is always on the same documents. A training loss that falls while the held-out loss rises is overfitting: fewer "
    "steps, a lower rate or more data help. A dotted line is the held-out loss of the base."
)
_COLUMNS = (
    "run", "steps", "training loss", "held-out loss", "best held-out loss", "at step", "tokens per second", "minutes",
)  # fmt: skip


def sections(courses: Sequence[Course]) -> list[Section]:
    """Returns the section on runs."""
    pictures = [training_curves(courses)]
    if any(len(course.curve("tokens_per_second")) or len(course.curve("grad_norm")) for course in courses):
        pictures.append(speed_curves(courses))
    table = Table("runs", "Runs", _COLUMNS, [_row(course) for course in courses])
    return [Section("Training runs", _TEXT, pictures, [table])]


def _row(course: Course) -> tuple[Cell, ...]:
    heldout, speed, seconds = (course.curve(name) for name in ("heldout_loss", "tokens_per_second", "seconds"))
    finite = np.isfinite(heldout.values_s)
    best = int(np.nanargmin(heldout.values_s)) if finite.any() else None
    # The first window of steps includes the compilation.
    speeds = speed.values_s[1:] if len(speed) > 1 else speed.values_s
    speeds = speeds[np.isfinite(speeds)]
    return (
        course.label,
        max(line["step"] for line in course.lines),
        _last(course.curve("loss")),
        _last(heldout),
        None if best is None else float(heldout.values_s[best]),
        None if best is None else int(heldout.steps_s[best]),
        round(float(np.median(speeds))) if len(speeds) else None,
        None if not len(seconds) else float(seconds.values_s[-1]) / 60,
    )


def _last(curve: Curve) -> float | None:
    return float(curve.values_s[-1]) if len(curve) else None

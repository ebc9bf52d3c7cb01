"""Figures of training runs: losses, learning rate, gradient norm and speed over steps."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from aligner_jax.analysis.curves import Course
from aligner_jax.analysis.report import Picture
from aligner_jax.analysis.style import BASE, figure, line_of, picture, plain, styled

_MARKS = 8
"""Markers of a curve at most, which tell curves apart in print without colours."""


@styled
def training_curves(courses: Sequence[Course]) -> Picture:
    """Draws training loss, held-out loss and held-out accuracy where there are any, and the learning rate."""
    unit = "nats a token" if all(course.is_sft for course in courses) else "nats"
    panels = {"loss": f"training loss\n({unit})", "heldout_loss": f"held-out loss\n({unit})"}
    panels |= {"heldout_accuracy": "held-out accuracy\n(%)", "learning_rate": "learning rate"}
    what = "Training loss (mean of the steps since the last point), held-out loss and learning rate over steps."
    return _panels("training_curves", what, courses, panels)


@styled
def speed_curves(courses: Sequence[Course]) -> Picture:
    """Draws gradient norm and tokens per second."""
    panels = {"grad_norm": "gradient norm", "tokens_per_second": "tokens per second"}
    what = "Gradient norm before clipping, and tokens per second; the first point's time includes the compilation."
    return _panels("training_speed", what, courses, panels)


def _panels(name: str, caption: str, courses: Sequence[Course], labels: dict[str, str]) -> Picture:
    """Draws a panel for each metric that any course has, one above the other."""
    metrics = [metric for metric in labels if any(len(course.curve(metric)) for course in courses)]
    rows = -(-len(courses) // _columns(len(courses)))
    made, panels = figure(0.6 + 2.1 * len(metrics) + 0.2 * rows, nrows=len(metrics), sharex=True, squeeze=False)
    for axes, metric in zip(panels[:, 0], metrics, strict=True):
        for number, course in enumerate(courses):
            _draw(axes, metric, number, course)
        if metric == "heldout_loss":
            _draw_base(axes, courses)
        axes.set_ylabel(labels[metric])
        axes.yaxis.set_major_locator(MaxNLocator(5))
    top, bottom = panels[0, 0], panels[-1, 0]
    # All panels have the same curves; the first one has them all.
    handles, names = top.get_legend_handles_labels()
    made.legend(handles, names, loc="outside upper left", ncols=_columns(len(courses)), fontsize=9)
    made.align_ylabels(panels[:, 0])
    bottom.set_xlabel("optimizer steps")
    bottom.xaxis.set_major_locator(MaxNLocator(integer=True))
    return picture(name, caption, made)


def _draw(axes: Axes, metric: str, number: int, course: Course) -> None:
    curve = course.curve(metric)
    scale = 100.0 if metric == "heldout_accuracy" else 1.0
    style = line_of(number)
    every = -(-len(curve) // _MARKS) or 1
    axes.plot(
        curve.steps_s, scale * curve.values_s, **style,
        # Markers of curves that lie on each other are at different steps.
        markevery=(number % every, every), label=plain(course.label),
    )  # fmt: skip
    if metric == "heldout_accuracy":
        low, high = course.curve("heldout_accuracy_low"), course.curve("heldout_accuracy_high")
        if np.array_equal(low.steps_s, curve.steps_s) and np.array_equal(high.steps_s, curve.steps_s):
            band = (scale * low.values_s, scale * high.values_s)
            axes.fill_between(curve.steps_s, *band, color=style["color"], alpha=0.15, linewidth=0)


def _draw_base(axes: Axes, courses: Sequence[Course]) -> None:
    """Draws the base's held-out loss, if all runs that have one agree: others have other data or another base."""
    losses = {round(course.base_loss, 6) for course in courses if course.base_loss is not None}
    if len(losses) == 1:
        (loss,) = losses
        axes.axhline(loss, color=BASE, linestyle=(0, (1, 2)), linewidth=1.2)
        axes.annotate("base", (1, loss), xycoords=("axes fraction", "data"), ha="right", va="bottom", color=BASE)


def _columns(count: int) -> int:
    return min(count, 3)

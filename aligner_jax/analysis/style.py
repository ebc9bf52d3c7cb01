"""How all figures look: sizes, colours that colour-blind readers tell apart, and what is rendered of each."""

import io
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from aligner_jax.analysis.report import Picture

WIDTH = 9.6
"""Inches; the page shows so much at its full width of 960 points."""
BASE = "#5a5a5a"
DIVERGING, SEQUENTIAL = "PuOr_r", "cividis"
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_DASHES = ("-", "--", ":", "-.")
_MARKERS = ("o", "s", "^", "D", "v", "P")

styled = matplotlib.rc_context(
    {
        "font.family": "DejaVu Sans",
        "font.size": 10,
        "axes.titlesize": 11,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        "svg.fonttype": "path",
        # The same analysis gives the same bytes.
        "svg.hashsalt": "aligner_jax",
    }
)
"""Decorates a function that draws."""


def figure(height: float, **subplots: Any) -> tuple[Figure, Any]:
    """A figure of the page's width with `Figure.subplots(**subplots)`; no window and no global state."""
    made = Figure(figsize=(WIDTH, height), layout="constrained")
    return made, made.subplots(**subplots)


def picture(name: str, caption: str, made: Figure) -> Picture:
    """The figure as PNG (twice the page's points) and SVG."""
    png, svg = io.BytesIO(), io.BytesIO()
    made.savefig(png, format="png", dpi=200, metadata={"Software": None})
    made.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    return Picture(name, caption, png.getvalue(), svg.getvalue())


def line_of(number: int) -> dict[str, Any]:
    """How the line of the adapter of that number is drawn; colour and dashes never repeat together before 24."""
    return {"color": _COLOURS[number % 6], "linestyle": _DASHES[number // 6 % 4], "linewidth": 1.6}


def marker_of(number: int) -> dict[str, Any]:
    """How the points of the adapter of that number are drawn."""
    return {"color": _COLOURS[number % 6], "marker": _MARKERS[(number + number // 6) % 6]}


def layer_axis(axes: Axes, label: bool = True) -> None:
    """The x axis counts layers: whole numbers only."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if label:
        axes.set_xlabel("layer")


def legend(axes: Axes, count: int, **options: Any) -> None:
    """A legend, above the axes where it would have many lines."""
    if count > 3:
        options = {"loc": "lower left", "bbox_to_anchor": (0, 1.0), "ncols": 2, **options}
    axes.legend(fontsize=9, **options)


def plain(text: str) -> str:
    """Text as matplotlib draws it: no formulas, and \\uXXXX for letters that its font may not have."""
    drawn = "".join(c if (ord(c) < 0x500 and c.isprintable()) or c in "␣⏎⇥␍▁…" else f"\\u{ord(c):04x}" for c in text)
    # A legend leaves out what begins with an underscore.
    return drawn.replace("$", r"\$") if not drawn.startswith("_") else f" {drawn}".replace("$", r"\$")


def annotate(axes: Axes, matrix: Any, form: str, *, dark_above: float) -> None:
    """Writes each number of a matrix into its cell, in white or black; nothing where it is NaN."""
    for i, row in enumerate(matrix):
        for j, value in enumerate(row):
            if value == value:
                axes.text(
                    j, i, form.format(value), ha="center", va="center", fontsize=9,
                    color="white" if abs(value) > dark_above else "black",
                )  # fmt: skip


def names_on(axes: Axes, names: Sequence[str] | None, count: int) -> None:
    """A matrix of adapters: names at the left (None: not again), numbers below, so that long names never overlap."""
    if names is not None:
        axes.set_yticks(range(count), [f"{plain(name)}  {i}" for i, name in enumerate(names, 1)])
    axes.set_xticks(range(count), [str(i) for i in range(1, count + 1)])
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0)

"""Style and rendering of all figures: sizes, colours that colour-blind readers can distinguish, PNG and SVG."""

import functools
import io
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ft2font import FT2Font
from matplotlib.ticker import MaxNLocator

from aligner_jax.analysis.report import Picture

WIDTH = 9.6
"""Width of figures in inches; fills the page's width of 960 points."""
BASE = "#5a5a5a"
DIVERGING, SEQUENTIAL = "PuOr_r", "Blues"
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_DASHES = ("-", "--", ":", "-.")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_HATCHES = ("", "///", "...", "xxx", "\\\\\\", "---")

_FAMILY = "DejaVu Sans"
"""A font that comes with matplotlib, so that figures are the same everywhere."""

styled = matplotlib.rc_context(
    {
        "font.family": _FAMILY,
        "font.size": 10,
        "axes.titlesize": 11,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "grid.color": "#e6e6e6",
        "grid.linewidth": 0.7,
        "hatch.linewidth": 0.7,
        "legend.frameon": False,
        "svg.fonttype": "path",
        # Makes the same analysis give the same bytes.
        "svg.hashsalt": "aligner_jax",
    }
)
"""Decorator that applies the style in a function that draws."""


def figure(height: float, **subplots: Any) -> tuple[Figure, Any]:
    """Returns a figure of the page's width and its `Figure.subplots(**subplots)`; uses no window or global state."""
    made = Figure(figsize=(WIDTH, height), layout="constrained")
    return made, made.subplots(**subplots)


def picture(name: str, caption: str, made: Figure) -> Picture:
    """Renders a figure as PNG (twice the page's resolution) and SVG."""
    png, svg = io.BytesIO(), io.BytesIO()
    made.savefig(png, format="png", dpi=200, metadata={"Software": None})
    made.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    return Picture(name, caption, png.getvalue(), svg.getvalue())


def line_of(number: int) -> dict[str, Any]:
    """Returns the line style of an adapter by its index; the first 24 styles are distinct.

    Colour and marker both tell the first six apart, so that they are legible in a print without colours.
    """
    look = {"linestyle": _DASHES[number // 6 % 4], "linewidth": 1.5, "markersize": 4, "markeredgewidth": 0}
    return {**marker_of(number), **look}


def marker_of(number: int) -> dict[str, Any]:
    """Returns the marker style of an adapter by its index."""
    return {"color": _COLOURS[number % 6], "marker": _MARKERS[(number + number // 6) % 6]}


def bar_of(number: int) -> dict[str, Any]:
    """Returns the style of a bar by the index of its adapter; hatches tell bars apart without colours."""
    return {"color": _COLOURS[number % 6], "hatch": _HATCHES[number % 6], "edgecolor": "white", "linewidth": 0}


def layer_axis(axes: Axes, label: bool = True) -> None:
    """Sets integer ticks on the x axis, and its label "layer"."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if label:
        axes.set_xlabel("layer")


def legend(axes: Axes, count: int, **options: Any) -> None:
    """Adds a legend; one with more than three entries is placed above the axes."""
    if count > 3:
        options = {"loc": "lower left", "bbox_to_anchor": (0, 1.0), "ncols": 2, **options}
    axes.legend(fontsize=9, **options)


def plain(text: str) -> str:
    """Returns text that matplotlib draws as it is: no formulas, and \\uXXXX for characters that its font lacks."""
    drawn = "".join(c if c.isprintable() and _has_glyph(c) else f"\\u{ord(c):04x}" for c in text)
    # A legend leaves out labels that begin with an underscore.
    return drawn.replace("$", r"\$") if not drawn.startswith("_") else f" {drawn}".replace("$", r"\$")


def _has_glyph(character: str) -> bool:
    return _font().get_char_index(ord(character)) != 0


@functools.cache
def _font() -> FT2Font:
    return get_font(findfont(FontProperties(family=_FAMILY)))


def annotate(axes: Axes, matrix: Any, form: str, *, dark_above: float) -> None:
    """Writes the values of a matrix into its cells, in white or black, with lines between them; NaN is a dash."""
    for i, row in enumerate(matrix):
        for j, value in enumerate(row):
            text, color = (form.format(value), "white" if abs(value) > dark_above else "black")
            if value != value:
                text, color = "–", "#888888"
            axes.text(j, i, text, ha="center", va="center", fontsize=9, color=color)
    for sides, draw in ((matrix.shape[0], axes.axhline), (matrix.shape[1], axes.axvline)):
        for place in range(1, sides):
            draw(place - 0.5, color="#cccccc", linewidth=0.7)


def names_on(axes: Axes, names: Sequence[str] | None, count: int) -> None:
    """Labels a matrix of adapters: names at the left (omitted if None), numbers below, so long names do not overlap."""
    if names is not None:
        axes.set_yticks(range(count), [f"{plain(name)}  {i}" for i, name in enumerate(names, 1)])
    axes.set_xticks(range(count), [str(i) for i in range(1, count + 1)])
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0)

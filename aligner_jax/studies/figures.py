"""Style of the studies' figures.

Colour-blind readers can tell the colours apart, and equal data give equal files.
"""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from aligner_jax.runtime.files import write_atomically

COLOURS = {
    "aligner": "#0072b2", "aligner_sums": "#56b4e9", "llama_adapter": "#009e73", "lora": "#d55e00", "prompt": "#cc79a7",
    "prefix": "#e69f00",
}  # fmt: skip
"""Colours by kind of arm."""
OTHER = "#666666"


@contextlib.contextmanager
def canvas(width: float, height: float) -> Iterator[Figure]:
    """Yields a figure without plots; sizes are in inches."""
    # Text that is not drawn as outlines can be searched; without random ids and dates, equal results give equal files.
    with mpl.rc_context({"svg.hashsalt": "aligner_jax", "svg.fonttype": "none", "font.size": 9}):
        drawn = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(drawn)
        yield drawn


@contextlib.contextmanager
def figure(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """Yields a figure with one plot; sizes are in inches."""
    with canvas(width, height) as drawn:
        axes = drawn.subplots()
        axes.grid(True, which="major", alpha=0.25)
        yield drawn, axes


def save(drawn: Figure, path: Path) -> list[Path]:
    """Writes a figure to `path` with the suffixes .png and .svg, and returns both paths.

    Raises:
      InputError: a file cannot be written.
    """
    files = [path.with_suffix(".png"), path.with_suffix(".svg")]
    of_files: tuple[dict[str, Any], ...] = ({"dpi": 150}, {"metadata": {"Date": None}})
    for file, options in zip(files, of_files, strict=True):
        content = io.BytesIO()
        drawn.savefig(content, format=file.suffix[1:], **options)
        write_atomically(file, content.getvalue())
    return files

"""Figures of reproduce_small.py: quality against trained parameters, with intervals, as PNG and SVG."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes

from aligner_jax.studies.figures import COLOURS, OTHER, canvas, save
from aligner_jax.studies.reproduce_shares import REFERENCE, Measured, without_share


def plot(title: str, measured: Sequence[Measured], base_loss: float, documents: int, path: Path) -> list[Path]:
    """Writes the figure of a task to `path` with the suffixes .png and .svg, and returns both paths.

    The left plot shows the held-out loss, with the interval of its difference to the base. The right plot shows the
    share of the reference's improvement, with its interval and one dot per seed.

    Raises:
      InputError: a file cannot be written.
    """
    with canvas(10, 4.2) as drawn:
        losses, shares = drawn.subplots(1, 2)
        _losses(losses, measured, base_loss)
        _shares(shares, measured)
        drawn.suptitle(f"{title}, {_seeds(measured)}, {documents} held-out examples, 95 % intervals", fontsize=11)
        return save(drawn, path)


def _seeds(measured: Sequence[Measured]) -> str:
    counts = [len(each.seeds) for each in measured] or [0]
    few, many = min(counts), max(counts)
    return f"{few} to {many} seeds" if few < many else f"{many} seed{'s' if many != 1 else ''}"


def _losses(axes: Axes, measured: Sequence[Measured], base_loss: float) -> None:
    axes.axhline(base_loss, color=OTHER, linestyle="--", linewidth=1)
    axes.annotate("base", (0.01, base_loss), xycoords=("axes fraction", "data"), va="bottom", color=OTHER)
    for number, each in enumerate(measured):
        # A higher gain means a lower loss, so the interval's ends swap.
        _point(axes, number, each, each.loss, each.gain.high - each.gain.value, each.gain.value - each.gain.low)
    _finish(axes, measured, [each.loss for each in measured], "held-out loss (nats a token)")


def _shares(axes: Axes, measured: Sequence[Measured]) -> None:
    shown = [each for each in measured if each.share is not None]
    if not shown:
        why = without_share(measured[0], measured) if measured else "nothing is finished"
        axes.text(0.5, 0.5, textwrap.fill(f"no share: {why}", 30), transform=axes.transAxes, ha="center")
    axes.axhline(100, color=OTHER, linestyle=":", linewidth=1)
    axes.axhline(0, color=OTHER, linestyle="--", linewidth=1)
    for number, each in enumerate(shown):
        assert each.share is not None
        value, low, high = (100 * x for x in (each.share.value, each.share.low, each.share.high))
        _point(axes, number, each, value, value - low, high - value)
        dots = [100 * share for share in each.shares]
        # Shifted to the left, so that the interval does not hide them.
        axes.plot([0.85 * each.parameters] * len(dots), dots, ".", color=_colour(each), alpha=0.6, markersize=4)
    values = [100 * each.share.value for each in shown if each.share is not None]
    _finish(axes, shown, values, f"share of {REFERENCE}'s improvement (%)")


def _point(axes: Axes, number: int, each: Measured, value: float, below: float, above: float) -> None:
    axes.errorbar(
        each.parameters, value, yerr=[[below], [above]], fmt="o", color=_colour(each),
        markersize=5, capsize=3, linewidth=1.2,
    )  # fmt: skip
    # Names alternate above and below the intervals, so that near neighbours do not overlap.
    end, offset, side = (value - below, -5, "top") if number % 2 else (value + above, 5, "bottom")
    axes.annotate(
        each.arm, (each.parameters, end), xytext=(0, offset), textcoords="offset points", ha="center", va=side,
        color=_colour(each),
    )  # fmt: skip


def _finish(axes: Axes, measured: Sequence[Measured], values: Sequence[float], label: str) -> None:
    """Connects the Aligners by a line, and sets up the axes."""
    line = [(each.parameters, v) for each, v in zip(measured, values, strict=True) if each.arm.startswith("aligner_")]
    if len(line) > 1:
        axes.plot(*zip(*line, strict=True), color=COLOURS["aligner"], linewidth=0.8, alpha=0.6)
    axes.set_xscale("log")
    if measured:
        least, most = (bound(each.parameters for each in measured) for bound in (min, max))
        # Leaves room for the names.
        axes.set_xlim(least / 3, most * 3)
    axes.margins(y=0.12)
    axes.set_xlabel("trained parameters")
    axes.set_ylabel(label)
    axes.grid(True, which="major", alpha=0.25)


def _colour(each: Measured) -> str:
    return COLOURS.get(each.arm.rpartition("_")[0], OTHER)

"""Figures of adapters without their base: gates, similarities, singular values."""

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.ticker import MaxNLocator

from aligner_jax.analysis.gates import Gates
from aligner_jax.analysis.report import Picture
from aligner_jax.analysis.style import (
    BASE,
    DIVERGING,
    SEQUENTIAL,
    annotate,
    figure,
    layer_axis,
    legend,
    line_of,
    marker_of,
    names_on,
    picture,
    plain,
    styled,
)  # fmt: skip


@styled
def gate_map(file: str, name: str, gates: Gates) -> Picture:
    """Draws one adapter's gates by layer and head, and above them their mean and standard deviation by layer."""
    layers_l, gates_ln = gates.layers_l, gates.gates_ln
    height = 3.0 + min(max(0.12 * gates_ln.shape[1], 1.0), 5.5)
    made, (above, below) = figure(
        height, nrows=2, sharex=True, height_ratios=[2.0, height - 2.6], gridspec_kw={"hspace": 0.05}
    )
    above.axhline(0, color="#bbbbbb", linewidth=0.8)
    band = (gates.mean_l - gates.std_l, gates.mean_l + gates.std_l)
    above.fill_between(layers_l, *band, color="#0072b2", alpha=0.25, linewidth=0, label="± standard deviation")
    above.plot(layers_l, gates.mean_l, color="#0072b2", label="mean over the heads", marker="o", markersize=3)
    above.set_ylabel("gate")
    above.legend(fontsize=9, ncols=2, loc="lower left", bbox_to_anchor=(0, 1.0))
    above.set_title(plain(name), loc="right")
    # The colours saturate at a quantile, since a few large gates would leave all others pale.
    largest = float(np.abs(gates_ln).max())
    limit = float(np.quantile(np.abs(gates_ln), 0.995)) or largest or 1.0
    edges = (layers_l[0] - 0.5, layers_l[-1] + 0.5, gates_ln.shape[1] - 0.5, -0.5)
    drawn = below.imshow(
        gates_ln.T, cmap=DIVERGING, vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest", extent=edges
    )
    below.grid(False)
    below.set_ylabel(gates.of if gates_ln.shape[1] > 1 else "one gate\nfor all heads")
    below.yaxis.set_major_locator(MaxNLocator(integer=True))
    layer_axis(below)
    extend = "both" if largest > limit else "neither"
    made.colorbar(drawn, ax=below, extend=extend, label="gate (0: the base)", pad=0.01, aspect=30)
    return picture(file, f"Gates of {name}.", made)


@styled
def gate_spreads(gates: Mapping[str, tuple[int, Gates]]) -> Picture:
    """Draws the standard deviation of the gates by layer, for all adapters that have gates.

    Args:
      gates: by the adapter's name, its index (which selects the line style) and its gates.
    """
    made, axes = figure(3.4)
    for name, (number, found) in gates.items():
        axes.plot(found.layers_l, found.std_l, label=plain(name), **line_of(number))
    axes.set_ylim(bottom=0)
    axes.set_ylabel("standard deviation of the gates\nover a layer's heads")
    layer_axis(axes)
    legend(axes, len(gates))
    return picture("gate_spread", "Spread of the gates a layer.", made)


@styled
def similarities(names: Sequence[str], matrices: Mapping[str, Float[np.ndarray, "a a"]]) -> Picture:
    """Draws matrices over pairs of adapters, by title; NaN marks pairs that cannot be compared.

    A matrix whose title begins with "cosine" has values from -1 to 1, any other from 0 to 1.
    """
    columns = min(len(matrices), 3 if len(names) <= 4 else 2)
    rows = math.ceil(len(matrices) / columns)
    made, grid = figure(rows * (0.8 + 0.34 * max(len(names), 2)), nrows=rows, ncols=columns, squeeze=False, sharey=True)
    for i, (axes, (title, matrix)) in enumerate(zip(grid.flat, matrices.items(), strict=False)):
        is_cosine = title.startswith("cosine")
        cmap, least = (DIVERGING, -1) if is_cosine else (SEQUENTIAL, 0)
        axes.grid(False)
        axes.imshow(matrix, cmap=cmap, vmin=least, vmax=1, aspect="auto")
        annotate(axes, matrix, "{:+.3f}" if is_cosine else "{:.1%}", dark_above=0.75 if is_cosine else 0.55)
        names_on(axes, names if i % columns == 0 else None, len(names))
        axes.set_title(title, loc="left", fontsize=10)
    for axes in grid.flat[len(matrices) :]:
        axes.set_visible(False)
    return picture("similarity", "What pairs have in common; a dash where there is nothing to compare.", made)


@styled
def spectra(lines: Mapping[str, tuple[int, Float[np.ndarray, " p"]]], fresh: Mapping[str, np.ndarray]) -> Picture:
    """Draws singular values divided by the largest.

    Args:
      lines: by label, the adapter's index (which selects the line style) and its singular values.
      fresh: by label, singular values of untrained tokens.
    """
    made, axes = figure(3.4)
    drawn: Counter[int] = Counter()
    for label, (number, sigma_p) in lines.items():
        largest = sigma_p[0] or 1.0
        places = np.arange(1, len(sigma_p) + 1)
        # All matrices of an adapter have the same line style; their markers differ.
        marker = marker_of(drawn[number])["marker"]
        drawn[number] += 1
        axes.plot(places, sigma_p / largest, label=plain(label), **{**line_of(number), "marker": marker})
    for (label, sigma_p), dashes in zip(fresh.items(), itertools.cycle((":", "--", "-.")), strict=False):
        places = np.arange(1, len(sigma_p) + 1)
        axes.plot(places, sigma_p / sigma_p[0], label=label, color=BASE, linestyle=dashes, linewidth=1.2)
    axes.set_ylim(0, 1.05)
    axes.set_ylabel("singular value\nover the largest")
    axes.set_xlabel("index of the singular value")
    layer_axis(axes, label=False)
    legend(axes, len(lines) + len(fresh))
    return picture("effective_rank", "Singular values of tokens and updates.", made)

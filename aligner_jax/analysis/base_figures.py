"""Figures of adapters with their base: shifts, tokens, hidden states, form against knowledge."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from aligner_jax.analysis.form_and_knowledge import KINDS, Change
from aligner_jax.analysis.hidden_states import Displacement, Map
from aligner_jax.analysis.promoted import Moved
from aligner_jax.analysis.report import Picture
from aligner_jax.analysis.shifts import Seen
from aligner_jax.analysis.style import (
    BASE,
    bar_of,
    figure,
    layer_axis,
    legend,
    line_of,
    marker_of,
    picture,
    plain,
    styled,
)


@styled
def shifts(models: Mapping[str, Seen]) -> Picture:
    """Draws the relative norm and the constancy of the adapters' shifts by layer."""
    made, (above, below) = figure(5.6, nrows=2, sharex=True, height_ratios=[3, 2])
    for number, (name, seen) in enumerate(models.items()):
        layers_l = np.flatnonzero(seen.adapted_l)
        if not len(layers_l):
            continue
        low_l, median_l, high_l = np.quantile(seen.relative_lx[layers_l], [0.1, 0.5, 0.9], axis=1)
        line = line_of(number)
        above.plot(layers_l, median_l, label=plain(name), **line)
        above.fill_between(layers_l, low_l, high_l, color=line["color"], alpha=0.15, linewidth=0)
        below.plot(layers_l, seen.constancy_l[layers_l], **line)
    above.set_yscale("log")
    above.set_ylabel("norm of what is added\nover the stream's norm")
    legend(above, len(models))
    below.set_ylim(0, 1.05)
    below.set_ylabel("constancy\n(1: the same everywhere)")
    layer_axis(below)
    caption = "What adapters add in each layer: median over tokens, and the band of 10 to 90 % of them."
    return picture("shifts", caption, made)


@styled
def directions(cosines: Mapping[str, Float[np.ndarray, " l"]]) -> Picture:
    """Draws the cosine between the mean shifts of pairs of adapters, by layer."""
    made, axes = figure(3.6)
    axes.axhline(0, color="#bbbbbb", linewidth=0.8)
    for number, (pair, cosine_l) in enumerate(cosines.items()):
        axes.plot(cosine_l, label=plain(pair), **line_of(number))
    axes.set_ylim(-1.05, 1.05)
    axes.set_ylabel("cosine of the mean vectors\nthat two adapters add")
    layer_axis(axes)
    legend(axes, len(cosines))
    return picture("directions", "Direction of what adapters add, against each other.", made)


@styled
def tokens(file: str, name: str, read: Moved, measured: Moved) -> Picture:
    """Draws the most promoted and demoted tokens: read from the adapter's vectors, and measured on prompts."""
    rows = max(len(read.promoted), len(measured.promoted)) * 2
    made, pair = figure(1.1 + 0.22 * rows, ncols=2)
    labels = ("logit of what is added, through the unembedding (nats)", "change of probability as the first token")
    for axes, moved, label in zip(pair, (read, measured), labels, strict=True):
        shown = [*moved.promoted, *reversed(moved.demoted)]
        values = [value for _, value in shown]
        colours = ["#0072b2" if value >= 0 else "#d55e00" for value in values]
        axes.barh(range(len(shown)), values, color=colours)
        axes.set_yticks(range(len(shown)), [plain(text) for text, _ in shown], fontsize=9)
        axes.invert_yaxis()
        axes.axvline(0, color="#888888", linewidth=0.8)
        axes.set_xlabel(label)
        axes.margins(y=0.01)
        axes.grid(False, axis="y")
        axes.grid(True, axis="x")
    made.suptitle(plain(name), fontsize=11)
    return picture(file, f"Tokens that {name} promotes and demotes.", made)


@styled
def hidden_states(names: Sequence[str], maps: Sequence[Map]) -> Picture:
    """Draws maps of the hidden states at the prompts' ends.

    If there is only one adapter, lines connect the base's states with the adapter's in the PCA maps.

    Args:
      names: names of the models; the base is the first.
      maps: one map per depth.
    """
    made, grid = figure(6.6, nrows=2, ncols=len(maps), squeeze=False)
    for column, found in enumerate(maps):
        first, second = found.explained
        headings = (f"{found.depth}\nPCA ({first:.0%} and {second:.0%} of the variance)", "t-SNE")
        for axes, heading, points_mb2 in zip(grid[:, column], headings, (found.pca_mb2, found.tsne_mb2), strict=True):
            for number in range(len(names) - 1, -1, -1):
                look = {"color": BASE, "marker": "x"} if number == 0 else marker_of(number - 1)
                axes.scatter(*points_mb2[number].T, s=18, label=plain(names[number]), linewidths=0.9, **look)
            if heading != "t-SNE" and len(names) == 2:
                for start, end in zip(points_mb2[0], points_mb2[1], strict=True):
                    axes.plot(*zip(start, end, strict=True), color="#bbbbbb", linewidth=0.5, zorder=0)
            axes.set_title(heading, fontsize=10, loc="left")
            axes.grid(False)
            axes.set_xticks([])
            axes.set_yticks([])
    handles, labels = grid[0, 0].get_legend_handles_labels()
    made.legend(handles[::-1], labels[::-1], loc="outside lower center", ncols=min(len(names), 4), fontsize=9)
    return picture("hidden_states", "Hidden states at the prompts' ends, with and without adapters.", made)


@styled
def displacements(models: Mapping[str, Displacement]) -> Picture:
    """Draws the distance that hidden states at the prompts' ends move, and the common part of the moves, by layer."""
    made, (above, below) = figure(4.6, nrows=2, sharex=True)
    for number, (name, found) in enumerate(models.items()):
        above.plot(found.relative_l, label=plain(name), **line_of(number))
        below.plot(found.common_l, **line_of(number))
    above.set_ylim(bottom=0)
    above.set_ylabel("move over the\nprompts' own spread")
    legend(above, len(models))
    below.set_ylim(0, 1.05)
    below.set_ylabel("common part\n(1: all move alike)")
    layer_axis(below)
    return picture("displacement", "How far adapters move the hidden states at the prompts' ends.", made)


@styled
def form_and_knowledge(
    changes: Mapping[str, Mapping[str, Change | None]], places: Mapping[str, Float[np.ndarray, " places"]]
) -> Picture:
    """Draws the loss by kind of token and by place in the answer; the first entry of `places` is the base's."""
    made, (left, right) = figure(4.0, ncols=2, width_ratios=[3, 2])
    kinds = [*KINDS, "all"]
    first = next(iter(changes.values()))
    models = ["base", *changes]
    width = 0.8 / len(models)
    for i, name in enumerate(models):
        found = first if name == "base" else changes[name]
        heights = [
            np.nan if (c := found[kind]) is None else (c.base if name == "base" else c.adapted) for kind in kinds
        ]
        at = np.arange(len(kinds)) + (i - (len(models) - 1) / 2) * width
        look = {"color": BASE} if i == 0 else bar_of(i - 1)
        left.bar(at, heights, width * 0.92, label=plain(name), **look)
    shares = [0 if (c := first[kind]) is None else c.tokens for kind in kinds]
    labels = [f"{kind}\n{count:,}" for kind, count in zip(kinds, shares, strict=True)]
    left.set_xticks(range(len(kinds)), labels, fontsize=9)
    left.axvline(2.5, color="#bbbbbb", linewidth=0.8, linestyle="--")
    left.axvline(3.5, color="#bbbbbb", linewidth=0.8, linestyle="--")
    left.set_xlabel("kind of token, and how many there are")
    left.set_ylabel("loss (nats a token)")
    left.set_title("form", loc="left")
    for i, (name, loss_p) in enumerate(places.items()):
        line = {"color": BASE, "linewidth": 1.5} if i == 0 else line_of(i - 1)
        right.plot(np.arange(1, len(loss_p) + 1), loss_p, label=plain(name), **line)
    right.set_xlabel("place of the token in the answer")
    right.set_ylabel("loss (nats a token)")
    right.set_ylim(bottom=0)
    right.legend(fontsize=9, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2)
    return picture("form_and_knowledge", "Held-out loss by kind of token and by place in the answer.", made)

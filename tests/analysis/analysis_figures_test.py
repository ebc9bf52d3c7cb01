"""Figures of an analysis: lines, bars and maps show the numbers they were given."""

import numpy as np
import pytest
from matplotlib.colors import to_hex

from aligner_jax.analysis import adapter_figures, base_figures
from aligner_jax.analysis.form_and_knowledge import KINDS, Change
from aligner_jax.analysis.gates import Gates
from aligner_jax.analysis.hidden_states import Displacement, Map
from aligner_jax.analysis.promoted import Moved
from aligner_jax.analysis.shifts import Seen
from aligner_jax.analysis.style import BASE


@pytest.fixture(autouse=True)
def unrendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Returns figures without rendering them, which would take most of the time."""
    for module in (adapter_figures, base_figures):
        monkeypatch.setattr(module, "picture", lambda file, caption, made: made)


def _lines(axes) -> list[tuple[str, list, list]]:
    """Returns label, x and y of every line that has points."""
    found = [line for line in axes.lines if line.get_marker() not in ("None", "")]
    return [(line.get_label(), *(np.asarray(x).tolist() for x in line.get_data())) for line in found]


def _band(axes) -> tuple[list, list]:
    """Returns the lower and upper edge of the filled band, by x."""
    points = axes.collections[0].get_paths()[0].vertices
    by_x = [points[points[:, 0] == x, 1] for x in np.unique(points[:, 0])]
    return [y.min() for y in by_x], [y.max() for y in by_x]


def _gates(gates_ln) -> Gates:
    gates_ln = np.asarray(gates_ln, float)
    return Gates(2 + np.arange(len(gates_ln)), gates_ln, gates_ln.mean(axis=1), gates_ln.std(axis=1))


def test_the_map_of_gates_has_layers_across_and_heads_down():
    gates = _gates([[1, 2, 3, 6], [0, 0, 0, 4], [-9, 1, 1, -1]])
    above, below, *_ = adapter_figures.gate_map("file", "name", gates).axes
    (image,) = below.images
    np.testing.assert_array_equal(image.get_array(), gates.gates_ln.T)
    assert image.get_extent() == [1.5, 4.5, 3.5, -0.5]
    low, high = image.get_clim()
    # White is 0, and the largest half percent of the gates saturates.
    assert -low == high == np.quantile(np.abs(gates.gates_ln), 0.995) < 9
    assert _lines(above) == [("mean over the heads", [2, 3, 4], [3, 1, -2])]
    for edge, sign in zip(_band(above), (-1, 1), strict=True):
        np.testing.assert_allclose(edge, gates.mean_l + sign * gates.std_l, rtol=1e-12)


def test_spreads_are_standard_deviations_by_layer():
    gates = _gates([[1, 1, 3, 3], [0, 0, 0, 4]])
    (axes,) = adapter_figures.gate_spreads({"a": (3, gates)}).axes
    assert _lines(axes) == [("a", [2, 3], gates.std_l.tolist())]
    assert axes.lines[0].get_color() == adapter_figures.line_of(3)["color"]


def test_similarities_are_told_in_their_own_scales():
    shares = np.asarray([[np.nan, 0.8], [0.8, np.nan]])
    matrices = {"identical entries": shares, "cosine of the gates": -shares}
    first, second = adapter_figures.similarities(["a", "b"], matrices).axes
    assert [axes.images[0].get_clim() for axes in (first, second)] == [(0, 1), (-1, 1)]
    np.testing.assert_array_equal(np.ma.filled(first.images[0].get_array(), np.nan), shares)
    texts = [[(*text.get_position(), text.get_text()) for text in axes.texts] for axes in (first, second)]
    assert texts == [[(0, 0, "–"), (1, 0, of), (0, 1, of), (1, 1, "–")] for of in ("80.0%", "-0.800")]
    assert [label.get_text() for label in first.get_yticklabels()] == ["a  1", "b  2"]


def test_singular_values_are_over_the_largest_and_an_adapters_matrices_are_told_apart():
    sigma_p = np.asarray([4.0, 2, 1])
    lines = {"a, update of q": (1, sigma_p), "a, update of v": (1, sigma_p / 2), "b": (0, sigma_p)}
    (axes,) = adapter_figures.spectra(lines, {"fresh": np.asarray([2.0, 2])}).axes
    assert _lines(axes) == [(label, [1, 2, 3], [1, 0.5, 0.25]) for label in lines]
    q, v, b, fresh = axes.lines
    assert q.get_color() == v.get_color() != b.get_color()
    assert q.get_marker() == b.get_marker() != v.get_marker()
    assert (fresh.get_label(), list(fresh.get_ydata()), fresh.get_color()) == ("fresh", [1, 1], BASE)


def _seen(relative_lx, mean_ld=None) -> Seen:
    """Norms are ten times those relative to the stream."""
    relative_lx = np.asarray(relative_lx, float)
    layers, empty = len(relative_lx), np.zeros(0)
    mean_ld = np.zeros((layers, 2)) if mean_ld is None else np.asarray(mean_ld, float)
    return Seen(relative_lx, 10 * relative_lx, mean_ld, empty, empty, empty)


def test_shifts_are_those_over_the_stream_in_the_layers_that_are_adapted():
    seen = _seen([[0] * 11, np.arange(11), np.arange(11) * 3], [[0, 0], [30, 40], [0, 75]])
    above, below = base_figures.shifts({"nothing": _seen(np.zeros((3, 11))), "a": seen}).axes
    assert _lines(above) == [("a", [1, 2], [5, 15])]
    for edge, share in zip(_band(above), (0.1, 0.9), strict=True):
        np.testing.assert_allclose(edge, [10 * share, 30 * share], rtol=1e-12)
    assert [(x, y) for _, x, y in _lines(below)] == [([1, 2], [1, 0.5])]
    # An adapter has the same colour in all figures, whichever others are drawn.
    assert above.lines[0].get_color() == below.lines[0].get_color() == base_figures.line_of(1)["color"]


def test_directions_are_cosines_by_layer():
    (axes,) = base_figures.directions({"a · b": np.asarray([np.nan, 0.5, -1])}).axes
    ((label, x, y),) = _lines(axes)
    assert (label, x, y[1:]) == ("a · b", [0, 1, 2], [0.5, -1])


def test_tokens_stand_from_the_most_promoted_to_the_most_demoted():
    read = Moved([("good", 3.0), ("fine", 1.0)], [("bad", -2.0), ("poor", -0.5)])
    measured = Moved([("yes", 0.2)], [("no", -0.1)])
    left, right = base_figures.tokens("file", "name", read, measured).axes
    assert [bar.get_width() for bar in left.patches] == [3, 1, -0.5, -2]
    assert [bar.get_width() for bar in right.patches] == [0.2, -0.1]
    assert [label.get_text() for label in left.get_yticklabels()] == ["good", "fine", "poor", "bad"]
    assert left.yaxis_inverted()
    assert "logit" in left.get_xlabel()
    assert "probability" in right.get_xlabel()


def _points(axes) -> dict[str, list]:
    return {found.get_label(): np.asarray(found.get_offsets()).tolist() for found in axes.collections}


def test_maps_join_the_base_with_the_only_adapter():
    pca_mb2, tsne_mb2 = np.arange(8.0).reshape(2, 2, 2), -np.arange(8.0).reshape(2, 2, 2)
    found = [Map("after layer 1", pca_mb2, (0.5, 0.25), tsne_mb2)]
    pca, tsne = base_figures.hidden_states(["base", "a"], found).axes
    assert _points(pca) == {"base": [[0, 1], [2, 3]], "a": [[4, 5], [6, 7]]}
    assert _points(tsne) == {"base": [[0, -1], [-2, -3]], "a": [[-4, -5], [-6, -7]]}
    assert pca.get_title(loc="left") == "after layer 1\nPCA (50% and 25% of the variance)"
    joined = [np.asarray(line.get_xydata()).tolist() for line in pca.lines]
    assert joined == [[[0, 1], [4, 5]], [[2, 3], [6, 7]]]
    assert not tsne.lines
    assert to_hex(pca.collections[-1].get_edgecolors()[0]) == BASE
    three = base_figures.hidden_states(["base", "a", "b"], [Map("", np.zeros((3, 1, 2)), (1, 0), np.zeros((3, 1, 2)))])
    assert not three.axes[0].lines


def test_moves_and_their_common_part():
    above, below = base_figures.displacements({"a": Displacement(np.asarray([0.5, 2]), np.asarray([1, 0.25]))}).axes
    assert _lines(above) == [("a", [0, 1], [0.5, 2])]
    assert [y for _, _, y in _lines(below)] == [[1, 0.25]]


def test_losses_stand_by_kind_and_by_place():
    def change(base: float, adapted: float) -> Change:
        return Change(tokens=7, base=base, adapted=adapted, low=0, high=0, share=0)

    parts = dict(zip((*KINDS, "all"), (change(3, 1), change(2, 1.5), None, change(4, 4.5), change(3, 2)), strict=True))
    places = {"base": np.asarray([3.0, 2]), "a": np.asarray([1.0, 1.5])}
    figure = base_figures.form_and_knowledge({"a": parts}, places)
    left, right = figure.axes
    base, adapted = ([bar.get_height() for bar in bars] for bars in left.containers)
    np.testing.assert_array_equal(base, [3, 2, np.nan, 4, 3])
    np.testing.assert_array_equal(adapted, [1, 1.5, np.nan, 4.5, 2])
    assert [bars.get_label() for bars in left.containers] == ["base", "a"]
    assert [label.get_text() for label in left.get_xticklabels()][2:4] == [
        "common words\n0",
        "content\n7",
    ]
    assert [line.get_xydata().tolist() for line in right.lines] == [[[1, 3], [2, 2]], [[1, 1], [2, 1.5]]]
    assert [line.get_color() for line in right.lines] == [BASE, base_figures.line_of(0)["color"]]

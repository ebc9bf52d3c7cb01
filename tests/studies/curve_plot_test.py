"""Figures and tables of made-up results: shares, intervals, and families that have no numbers."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from aligner_jax.evals.estimates import Estimate
from aligner_jax.studies import bits, curve_plot, curve_table
from aligner_jax.studies.bits import Compact
from aligner_jax.studies.curve import Reached
from aligner_jax.studies.outcomes import Outcomes, share_of_success


def arm(name: str, parameters: int, right: int | None, test_share: Estimate | None = None) -> Reached:
    """An arm with `right` of ten prompts answered right."""
    outcomes = None if right is None else Outcomes(np.arange(10)[None] < right, np.arange(10))
    lora = Outcomes(np.ones((1, 10)), np.arange(10))
    return Reached(
        arm=name, kind=name.rpartition("_")[0], parameters=parameters, is_whole=right is not None, rate=0.01,
        inside=True, runs=1, converged=0, steps=80.0, devices="cpu", outcomes=outcomes,
        success_share=share_of_success(outcomes, lora), gain=0.5, gain_share=math.nan, test_gain=test_share,
        test_share=test_share,
    )  # fmt: skip


ARMS = [arm("aligner_1", 828, 4), arm("aligner_10", 6_012, 10), arm("lora_8", 460_800, 10)]


def test_the_numbers_for_a_share_are_drawn_and_printed(tmp_path: Path):
    files = curve_plot.plot_needed({"form": ARMS, "knowledge": ARMS[:1]}, tmp_path / "needed")
    assert [file.name for file in files] == ["needed.png", "needed.svg"]
    text = files[1].read_text()
    # A family without its reference has no row.
    assert ">form<" in text
    assert ">knowledge<" not in text
    assert "aligner: 4,3" in text
    rows = [line.split("|") for line in curve_table.needed_table({"form": ARMS, "knowledge": ARMS[:1]}).splitlines()]
    found = {row[1].strip(): row[3].strip() for row in rows if len(row) > 3}
    assert found["form"].startswith("4,3")
    assert curve_plot.plot_needed({"knowledge": ARMS[:1]}, tmp_path / "none") == []
    assert curve_table.needed_table({"knowledge": ARMS[:1]}) == ""


def test_an_arm_that_is_not_whole_is_in_no_figure_of_success(tmp_path: Path):
    some = arm("aligner_30", 17_532, None)
    (_, svg) = curve_plot.plot_family("form", None, [*ARMS, some], tmp_path / "form")
    text = svg.read_text()
    assert all(f">{each.arm}<" in text for each in ARMS)
    assert ">aligner_30<" not in text
    table = curve_table.family_table("form", None, [*ARMS, some])
    (row,) = (line for line in table.splitlines() if "aligner_30" in line)
    assert "more to come" in row
    assert "40% [" in next(line for line in table.splitlines() if "| aligner_1 " in line)


def test_families_without_checks_show_the_share_of_the_gain(tmp_path: Path):
    arms = [arm("aligner_1", 828, None, Estimate(-0.2, -0.5, 0.1)), arm("lora_8", 460_800, None, Estimate(1, 1, 1))]
    (_, svg) = curve_plot.plot_family("alpaca", None, arms, tmp_path / "alpaca")
    assert "gain in test loss" in svg.read_text()
    assert curve_plot.plot_family("alpaca", None, [arm("aligner_1", 828, None)], tmp_path / "none") == []


def test_arms_of_one_kind_are_told_apart_by_their_lines(tmp_path: Path):
    half = Estimate(0.5, 0.25, 0.75)
    measured = [Compact(f"aligner_{n}", "aligner", "int8", 100.0 * n, 8.0, half) for n in (1, 10)]
    (_, svg) = bits.plot("form", measured, tmp_path / "bits")
    assert "bytes of an adapter" in svg.read_text()
    assert "| aligner_10 |" in " ".join(bits.table("form", measured).split())
    assert bits.table("form", []) == ""


def test_no_name_of_an_arm_is_over_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    boxes = []

    def extents(drawn, path):
        boxes.extend((text.get_text(), text.get_window_extent()) for text in drawn.axes[0].texts)
        return []

    monkeypatch.setattr(curve_plot, "save", extents)
    arms = [arm("aligner_1", 828, 9), arm("aligner_1_sums", 828, 8), arm("aligner_3", 1980, 9)]
    curve_plot.plot_family("form", None, [*arms, arm("bias", 900, 9), arm("lora_8", 1000, 10)], tmp_path / "form")
    assert len(boxes) == 5
    for (first, box), (second, other) in itertools.combinations(boxes, 2):
        assert not box.overlaps(other), (first, second)

"""aligner_jax/studies/reproduce_shares.py, with the tables and figures of its results."""

import math
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from reproduce_results import made_up

from aligner_jax.errors import InputError
from aligner_jax.evals.estimates import Estimate
from aligner_jax.studies import reproduce_plots, reproduce_shares, reproduce_table


def test_shares_are_of_what_lora_gains_with_the_same_seed():
    shares = reproduce_shares
    results = {
        "lora_8": {s: made_up([2 + s // 2, 4 + s // 2, 2, 4], 460_800) for s in range(3)},
        "aligner_1": {s: made_up([1, 2, 1, 2]) for s in range(3)},
    }
    small, large = shares.measure(results, {"lora_8": 1e-2, "aligner_1": 3e-3})
    assert [small.arm, large.arm] == ["aligner_1", "lora_8"]
    assert small.shares == (6 / 12, 6 / 12, 6 / 14)
    assert small.share.value == pytest.approx(18 / 38, rel=1e-12)
    assert small.share.low < 6 / 14
    assert small.share.high > 6 / 12
    assert large.share == Estimate(1.0, 1.0, 1.0)
    assert small.loss == pytest.approx(2.0 - 0.15, rel=1e-12)
    assert small.gain.value == pytest.approx(0.15, rel=1e-12)
    assert small.gain.low < 0.15 < small.gain.high
    # Examples differ equally with either arm, which a paired comparison cancels.
    one_seed = {arm: {0: by_seed[0]} for arm, by_seed in results.items()}
    assert shares.measure(one_seed, {"lora_8": 1e-2, "aligner_1": 3e-3})[0].share == Estimate(0.5, 0.5, 0.5)


def test_a_share_of_an_improvement_that_may_be_none_is_not_given():
    shares, table = reproduce_shares, reproduce_table
    results = {"lora_8": {0: made_up([2, -2, 1, -0.5], 460_800)}, "aligner_1": {0: made_up([1, 1, 1, 1])}}
    measured = shares.measure(results, dict.fromkeys(results, 1e-2))
    assert [each.share for each in measured] == [None, None]
    assert "not known" in table.table("alpaca", measured, 2.0, 4, (1e-3, 1e-2, 1e-1))
    assert "no share, since lora_8's own improvement is not known to be above 0" in table.claims("alpaca", measured)
    # Results without any LoRA, or with LoRA of other seeds.
    better = {"aligner_1": {0: made_up([1, 2, 1, 2])}, "lora_8": {1: made_up([1, 2, 1, 2])}}
    for results in ({"aligner_1": better["aligner_1"]}, better):
        measured = shares.measure(results, dict.fromkeys(results, 1e-2))
        assert "no share, since lora_8 was not trained with its seeds" in table.claims("alpaca", measured)
        axes = Figure().subplots()
        reproduce_plots._shares(axes, measured[:1])
        assert "not trained" in axes.texts[0].get_text().replace("\n", " ")


def test_the_tables_say_which_rates_were_best_and_which_are_at_an_edge():
    shares, table = reproduce_shares, reproduce_table
    results = {"lora_8": {0: made_up([2, 4, 2, 3], 460_800)}, "aligner_1": {0: made_up([1, 2, 1, 2])}}
    measured = shares.measure(results, {"lora_8": 1e-1, "aligner_1": 1e-2})
    rows = table.table("gsm8k", measured, 2.0, 4, (1e-3, 1e-2, 1e-1)).splitlines()
    cells = {row.split("|")[1].strip(): [cell.strip() for cell in row.split("|")[2:-1]] for row in rows[2:]}
    assert cells["aligner_1"][:4] == ["828", "0.18%", "0.01", "1.8500"]
    assert cells["lora_8"][2] == "0.1 (edge)"
    assert cells["lora_8"][5] == "100%"
    assert " 0.01 (edge) |" in table.table("gsm8k", measured, 2.0, 4, (1e-2, 1e-1, 1.0))
    assert "edge" not in table.table("gsm8k", measured, 2.0, 4, (1e-3, 1e-2, 1e-1, 1.0))
    assert cells["aligner_1"][5].startswith("55% [")
    gain = measured[0].gain
    assert cells["aligner_1"][4] == f"0.1500 [{gain.low:.4f}, {gain.high:.4f}]"
    tried = {"aligner_1": {"sweep": [{"lr": 1e-3, "heldout_loss": 1.75}, {"lr": 1e-2, "heldout_loss": 1.5}]}}
    assert "| 1.7500 | **1.5000** |" in table.tuning("gsm8k", tried)
    # A rate with which training diverged must not hide a better one.
    tried["aligner_1"]["sweep"].insert(0, {"lr": 1e-4, "heldout_loss": math.nan})
    assert "| nan | 1.7500 | **1.5000** |" in " ".join(table.tuning("gsm8k", tried).split())


def test_figures_are_pictures_that_name_every_arm_and_come_out_the_same_again(tmp_path: Path):
    shares, plots = reproduce_shares, reproduce_plots
    results = {
        "lora_8": {s: made_up([2, 4 + s, 2, 3], 460_800) for s in range(3)},
        "aligner_1": {s: made_up([1, 2, 1 - s, 2]) for s in range(3)},
        "aligner_10": {s: made_up([1, 2, 1, 2 + s], 6_012) for s in range(3)},
    }
    measured = shares.measure(results, dict.fromkeys(results, 1e-2))
    files = plots.plot("Form", measured, 2.0, 4, tmp_path / "figures" / "alpaca")
    assert [file.name for file in files] == ["alpaca.png", "alpaca.svg"]
    png, svg = (file.read_bytes() for file in files)
    assert png.startswith(b"\x89PNG")
    assert len(png) > 20_000
    text = svg.decode()
    for word in (*results, "trained parameters", "3 seeds, 4 held-out examples"):
        assert f">{word}<" in text or word in text.partition("<defs>")[2], word
    # Six error bars: three arms, on both sides.
    assert text.count("LineCollection") == 6
    assert [file.read_bytes() for file in plots.plot("Form", measured, 2.0, 4, tmp_path / "again")] == [png, svg]
    (tmp_path / "taken.png").mkdir()
    with pytest.raises(InputError, match=r"taken\.png cannot be written: "):
        plots.plot("Form", measured, 2.0, 4, tmp_path / "taken")
    nothing = [shares.measure({"lora_8": {0: made_up([1, -1], 5)}}, {"lora_8": 1e-2})[0]]
    assert plots.plot("Form", nothing, 2.0, 2, tmp_path / "nothing")[0].stat().st_size > 10_000


def test_figures_have_intervals_on_their_sides_and_name_what_was_measured():
    shares, plots = reproduce_shares, reproduce_plots
    gain, share = Estimate(0.5, 0.25, 0.875), Estimate(0.5, 0.375, 0.75)
    made = {"rate": 1e-2, "loss": 1.5, "gain": gain, "share": share}
    measured = [
        shares.Measured(arm="aligner_1", seeds=(0, 1), parameters=100, shares=(0.25, 0.5), **made),
        shares.Measured(arm="aligner_10", seeds=(0, 1, 2), parameters=1000, shares=(0.5, 0.5, 0.5), **made),
        shares.Measured(arm="lora_8", seeds=(0, 1, 2), parameters=5000, shares=(1, 1, 1), **made),
    ]
    left, right = Figure().subplots(1, 2)
    plots._losses(left, measured, 2.0)
    plots._shares(right, measured)
    # A larger gain is a lower loss.
    for axes, (low, value, high) in ((left, (1.125, 1.5, 1.75)), (right, (37.5, 50, 75))):
        point, _, (bar,) = axes.containers[0]
        assert point.get_xydata().tolist() == [[100, value]]
        assert bar.get_segments()[0].tolist() == [[100, low], [100, high]]
        (aligners,) = (line for line in axes.lines if len(line.get_xdata()) == 2 and line.get_xdata()[1] == 1000)
        assert aligners.get_xydata().tolist() == [[100, value], [1000, value]]
        assert axes.get_xscale() == "log"
    dots = [line.get_ydata() for line in right.lines if line.get_marker() == "."]
    assert [list(dot) for dot in dots] == [[25, 50], [50, 50, 50], [100, 100, 100]]
    assert plots._seeds(measured) == "2 to 3 seeds"
    assert [plots._seeds(measured[i:]) for i in (1, 3)] == ["3 seeds", "0 seeds"]

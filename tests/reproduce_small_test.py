"""scripts/reproduce_small.py on made-up results: shares, intervals, the forecast, what is done again, the files."""

import dataclasses
import json
import math
import sys
from pathlib import Path

import cell_runs
import compare_data
import numpy as np
import pytest
import reproduce_cells
import reproduce_plots
import reproduce_shares
import reproduce_small
import reproduce_table
from matplotlib.figure import Figure
from scipy import stats

from aligner_jax.errors import InputError


def _result(gains: list[float], parameters: int = 828) -> dict:
    """A cell's result on documents of ten targets and 20 nats, each better by so many nats."""
    base = [[20.0, 10] for _ in gains]
    after = [[20.0 - gain, 10] for gain in gains]
    loss = sum(nats for nats, _ in after) / (10 * len(gains))
    return {
        "parameters": parameters, "base_documents": base, "documents": after, "base_loss": 2.0, "loss": loss,
        "tokens_per_second": 400.0, "seconds": 50.0,
    }  # fmt: skip


def test_an_interval_over_examples_alone_or_seeds_alone_is_students():
    ratio = reproduce_shares.ratio
    part_n = np.array([1.0, 4.0, 2.0, 2.5, 0.5])
    found = ratio(part_n[None], np.ones((1, 5)))
    want = stats.ttest_1samp(part_n, 0).confidence_interval(0.95)
    np.testing.assert_allclose([found.value, found.low, found.high], [2.0, *want], rtol=1e-12)
    # Seeds that differ, and examples that do not.
    found = ratio(np.repeat(part_n[:3, None], 7, axis=1), np.ones((3, 7)))
    want = stats.ttest_1samp(part_n[:3], 0).confidence_interval(0.95)
    np.testing.assert_allclose([found.value, found.low, found.high], [7 / 3, *want], rtol=1e-12)
    # As many as two samples of their own have, where seeds and examples say as much.
    both = ratio(np.array([[0.0, 2.0, 1.0], [2.0, 4.0, 3.0], [1.0, 3.0, 2.0]]), np.ones((3, 3)))
    half = stats.t.ppf(0.975, 4) * np.sqrt(1 / 3 + 1 / 3)
    np.testing.assert_allclose([both.value, both.low, both.high], [2, 2 - half, 2 + half], rtol=1e-12)
    with pytest.raises(InputError, match=r"examples that are short enough: 1, .* raise --heldout"):
        ratio(np.ones((3, 1)), np.ones((3, 1)))


@pytest.mark.parametrize(("of_seeds", "of_examples"), [(0.3, 0.1), (0.1, 0.3), (0.01, 1.0)])
def test_intervals_hold_the_truth_as_often_as_they_say(of_seeds: float, of_examples: float):
    """Seeds, examples and both together vary; the parts and the whole go up and down together, as losses do."""
    ratio, rng = reproduce_shares.ratio, np.random.default_rng(0)
    held = []
    for _ in range(400):
        sizes_n = rng.gamma(4, 0.25, 40)
        whole_sn = sizes_n * (1 + rng.normal(0, 0.1, (3, 1))) + rng.normal(0, 0.1, (3, 40))
        shares_sn = 0.6 + rng.normal(0, of_seeds, (3, 1)) + rng.normal(0, of_examples, 40)
        found = ratio(shares_sn * sizes_n + rng.normal(0, 0.1, (3, 40)), whole_sn)
        held.append(found.low < 0.6 < found.high)
    # A binomial's spread is 0.011; below, intervals are too narrow, and at 1 they say nothing.
    assert 0.92 <= np.mean(held) < 0.99


def test_shares_are_of_what_lora_gains_with_the_same_seed():
    shares = reproduce_shares
    results = {
        "lora_8": {s: _result([2 + s // 2, 4 + s // 2, 2, 4], 460_800) for s in range(3)},
        "aligner_1": {s: _result([1, 2, 1, 2]) for s in range(3)},
    }
    small, large = shares.measure(results, {"lora_8": 1e-2, "aligner_1": 3e-3})
    assert [small.arm, large.arm] == ["aligner_1", "lora_8"]
    assert small.shares == (6 / 12, 6 / 12, 6 / 14)
    assert small.share.value == pytest.approx(18 / 38, rel=1e-12)
    assert small.share.low < 6 / 14
    assert small.share.high > 6 / 12
    assert large.share == shares.Estimate(1.0, 1.0, 1.0)
    assert small.loss == pytest.approx(2.0 - 0.15, rel=1e-12)
    assert small.gain.value == pytest.approx(0.15, rel=1e-12)
    assert small.gain.low < 0.15 < small.gain.high
    # Examples differ by as much with either arm, which a comparison in pairs does not see.
    one_seed = {arm: {0: by_seed[0]} for arm, by_seed in results.items()}
    assert shares.measure(one_seed, {"lora_8": 1e-2, "aligner_1": 3e-3})[0].share == shares.Estimate(0.5, 0.5, 0.5)


def test_a_share_of_an_improvement_that_may_be_none_is_not_given():
    shares, table = reproduce_shares, reproduce_table
    results = {"lora_8": {0: _result([2, -2, 1, -0.5], 460_800)}, "aligner_1": {0: _result([1, 1, 1, 1])}}
    measured = shares.measure(results, dict.fromkeys(results, 1e-2))
    assert [each.share for each in measured] == [None, None]
    assert "not sure" in table.table("alpaca", measured, 2.0, 4, (1e-3, 1e-2, 1e-1))
    assert "no share, since lora_8's own improvement is not known to be above 0" in table.claims("alpaca", measured)


def test_the_tables_say_which_rates_were_best_and_which_are_at_an_edge():
    shares, table = reproduce_shares, reproduce_table
    results = {"lora_8": {0: _result([2, 4, 2, 3], 460_800)}, "aligner_1": {0: _result([1, 2, 1, 2])}}
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
    # A rate at which it did not learn at all hides none at which it did.
    tried["aligner_1"]["sweep"].insert(0, {"lr": 1e-4, "heldout_loss": math.nan})
    assert "| nan | 1.7500 | **1.5000** |" in " ".join(table.tuning("gsm8k", tried).split())


def test_figures_are_pictures_that_name_every_arm_and_come_out_the_same_again(tmp_path: Path):
    shares, plots = reproduce_shares, reproduce_plots
    results = {
        "lora_8": {s: _result([2, 4 + s, 2, 3], 460_800) for s in range(3)},
        "aligner_1": {s: _result([1, 2, 1 - s, 2]) for s in range(3)},
        "aligner_10": {s: _result([1, 2, 1, 2 + s], 6_012) for s in range(3)},
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
    # Six bars of errors: three arms, and each on both sides.
    assert text.count("LineCollection") == 6
    assert [file.read_bytes() for file in plots.plot("Form", measured, 2.0, 4, tmp_path / "again")] == [png, svg]
    (tmp_path / "taken.png").mkdir()
    with pytest.raises(InputError, match=r"taken\.png cannot be written: "):
        plots.plot("Form", measured, 2.0, 4, tmp_path / "taken")
    nothing = [shares.measure({"lora_8": {0: _result([1, -1], 5)}}, {"lora_8": 1e-2})[0]]
    assert plots.plot("Form", nothing, 2.0, 2, tmp_path / "nothing")[0].stat().st_size > 10_000


def test_figures_have_intervals_on_their_sides_and_name_what_was_measured():
    shares, plots = reproduce_shares, reproduce_plots
    gain, share = shares.Estimate(0.5, 0.25, 0.875), shares.Estimate(0.5, 0.375, 0.75)
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


@dataclasses.dataclass(frozen=True)
class _Cell:
    name: str


def test_a_cell_is_made_of_its_runs_and_of_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    runs, begun = cell_runs, []

    def train(file: Path, workdir: Path, cell) -> None:
        begun.append(workdir.name)
        if workdir.name == "second" and begun.count("second") == 1:
            raise InputError("it ended")
        (workdir / "checkpoints").mkdir(parents=True)
        after = {"accuracy": 0.5} | dict.fromkeys(("pairs", "prompts", "loss", "accuracy_interval", "margin", "each"))
        (workdir / "report.json").write_text(json.dumps({"num_params": 8, "file_bytes": 9, "after": after}))
        speeds = [1, 40, 50, 60] if workdir.name == "second" else [7]
        lines = [{"tokens_per_second": speed} for speed in speeds] + [{"heldout_loss": 1.0}]
        (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    monkeypatch.setattr(runs, "_train", train)
    cell, settings = _Cell("a"), {"first": {"steps": 1}, "second": {"steps": 2}}
    assert runs.finished(cell, settings, tmp_path) is None
    with pytest.raises(InputError, match="it ended"):
        runs.run(cell, settings, tmp_path)
    # Its first run is there, but not from these settings.
    with pytest.raises(InputError, match=r"a/first was made with other settings \(steps is 3 and was 1\)"):
        runs.run(cell, {**settings, "first": {"steps": 3}}, tmp_path)
    assert begun == ["first", "second"]
    (tmp_path / "runs" / "a" / "first" / "finished").write_text("12.5\n")
    result = runs.run(cell, settings, tmp_path)
    assert begun == ["first", "second", "second"]
    # The first window holds the compilation.
    assert result["tokens_per_second"] == 50
    assert 12.5 <= result["seconds"] < 20
    assert [path.name for path in tmp_path.rglob("checkpoints")] == []
    assert runs.finished(cell, settings, tmp_path) == result
    with pytest.raises(InputError, match=r"a\.json was made with other settings \(second\.steps is 3 and was 2\)"):
        runs.finished(cell, {**settings, "second": {"steps": 3}}, tmp_path)
    for damaged in ("{", "{}", "[]"):
        (tmp_path / "cells" / "a.json").write_text(damaged)
        with pytest.raises(InputError, match=r"a\.json cannot be used \(\w+\): remove it"):
            runs.finished(cell, settings, tmp_path)


def test_what_is_left_is_told_by_what_was_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    runs = cell_runs
    cells = [_Cell(name) for name in "abcd"]
    expected = dict(zip(cells, (60.0, 600.0, 120.0, 180.0), strict=True))

    def run(cell, settings, out) -> dict:
        if cell.name == "b":
            raise InputError("it ended")
        return {"seconds": 2 * expected[cell]}

    monkeypatch.setattr(runs, "run", run)
    assert "about 16 minutes on two cores for 4 cells;" in runs.forecast(cells, cells, expected)
    assert "about 5 minutes on two cores for 2 cells, 2 of 4 being there;" in runs.forecast(cells, cells[2:], expected)
    made: list[str] = []
    failures = runs.make(
        cells, lambda cell: {}, expected, {}, tmp_path, line=lambda _: "done", after=lambda cell: made.append(cell.name)
    )
    assert [str(failure) for failure in failures] == ["it ended"]
    assert made == ["a", "c", "d"]
    # Twice as long as was expected of those that were made.
    said = [line.partition("]")[2].partition(": ")[2] for line in capsys.readouterr().out.splitlines()]
    assert said == ["done; about 30 minutes left", "failed", "done; about 6 minutes left", "done"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with 30 examples of either task's form."""
    folder = tmp_path / "data"
    for name in ("sft", "reasoning/gsm8k"):
        (folder / name).mkdir(parents=True)
    records = [{"instruction": f"Name number {i}.", "input": "", "output": f"It is {i}."} for i in range(30)]
    (folder / "sft" / "alpaca_random_9k.json").write_text(json.dumps(records))
    lines = [
        json.dumps({"question": f"What is {i} + 1?", "answer": f"It is {i + 1}.\n#### {i + 1}"}) for i in range(30)
    ]
    (folder / "reasoning" / "gsm8k" / "train.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture
def reproduce(data: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs the script with flags, and with runs that end at once with what was to be trained in place of a result."""
    runs, small = cell_runs, reproduce_small
    begun: list[str] = []
    ends: dict[str, BaseException] = {}

    def pretend(file: Path, workdir: Path, cell) -> None:
        begun.append(cell.name)
        if cell.name in ends:
            raise ends[cell.name]
        config = json.loads(file.read_text())
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / "metrics.jsonl").write_text(json.dumps({"step": 1, "tokens_per_second": 400.0}) + "\n")
        rates, rank = config["sweep"]["lr"], 2.0 if config["adapter"]["method"] == "lora" else 1.0
        if rates:
            # The best is the second for LoRA and the third for Aligners.
            best = rates[1] if rank == 2 else rates[2]
            losses = [{"lr": rate, "heldout_loss": 2 + abs(np.log(rate / best))} for rate in rates]
            report = {"adapters": losses, "best": 0}
        else:
            gains = np.linspace(1, 2, 8) * rank + 0.01 * config["seed"]
            made = _result(gains.tolist(), 460_800 if rank == 2 else 828)
            documents = {"before": made["base_documents"], "after": made["documents"]}
            losses = {"before": made["base_loss"], "after": made["loss"]}
            report = {key: {"documents": documents[key], "heldout_loss": losses[key]} for key in documents}
            report |= {"num_params": made["parameters"], "file_bytes": 4104}
        (workdir / "report.json").write_text(json.dumps(report))

    def call(*flags: str, **ending: BaseException) -> tuple[int, list[str]]:
        begun.clear()
        ends.clear()
        ends.update(ending)
        arms = ["--form-arms=aligner_1,lora_8", "--reasoning-arms=aligner_1,lora_8"]
        sizes = ["--heldout=8", "--tuning-heldout=4", "--seeds=2", f"--out={data.parent / 'out'}"]
        monkeypatch.setattr(sys, "argv", ["reproduce_small.py", str(data), *arms, *sizes, *flags])
        return small.reproduce(small.arguments()), list(begun)

    def touch(title: str, measured: list, base_loss: float, documents: int, path: Path) -> None:
        path.with_suffix(".png").write_text(f"{title}, {len(measured)} arms")

    monkeypatch.setattr(runs, "_train", pretend)
    monkeypatch.setattr(small, "plot", touch)
    return call


def test_every_arm_is_tuned_and_then_trained_at_its_best_rate(reproduce, data: Path, capsys):
    out = data.parent / "out"
    status, begun = reproduce()
    assert status == 0
    # LoRA, which shares are of, comes first.
    pairs = [f"{task}-{arm}" for arm in ("lora_8", "aligner_1") for task in ("alpaca", "gsm8k")]
    assert begun == [f"{pair}-{what}" for pair in pairs for what in ("rates", 0)] + [f"{pair}-1" for pair in pairs]
    settings = {p.stem: json.loads(p.read_text())["settings"]["sft"] for p in (out / "cells").iterdir()}
    assert len({tuple(settings[f"{pair}-rates"]["sweep"]["lr"]) for pair in pairs}) == 1
    assert {settings[f"{pair}-rates"]["steps"] for pair in pairs} == {settings[f"{pair}-1"]["steps"] for pair in pairs}
    assert [settings[f"alpaca-{arm}-1"]["optim"]["lr"] for arm in ("aligner_1", "lora_8")] == [0.01, 0.003]
    assert settings["alpaca-lora_8-1"]["seed"] == 1
    # What the tables are judged by is neither trained on nor tuned by.
    judged, tuned = ({settings[f"alpaca-lora_8-{kind}"]["data"]["heldout_path"]} for kind in (1, "rates"))
    rows = {path: set(Path(path).read_text().splitlines()) for path in judged | tuned}
    trained = {kind: settings[f"alpaca-lora_8-{kind}"]["data"]["path"] for kind in (1, "rates")}
    for path in trained.values():
        assert not rows[next(iter(judged))] & set(Path(path).read_text().splitlines())
    assert not rows[next(iter(judged))] & rows[next(iter(tuned))]
    assert not rows[next(iter(tuned))] & set(Path(trained["rates"]).read_text().splitlines())
    table, shown = (out / "table.md").read_text(), capsys.readouterr().out
    assert "minutes on two cores for 12 cells" in shown
    assert table in shown
    assert "Aligner-1 (828 parameters) keeps 50% [" in table
    assert "8 held-out examples" in table
    numbers = json.loads((out / "results.json").read_text())
    assert numbers["gsm8k"]["arms"][0]["share"]["value"] == pytest.approx(0.5, abs=0.01)
    assert (out / "gsm8k.png").read_text() == "Reasoning (GSM8K), 2 arms"


def test_what_is_finished_is_kept_and_shown_early(reproduce, data: Path, capsys):
    out = data.parent / "out"
    with pytest.raises(KeyboardInterrupt):
        reproduce(**{"gsm8k-aligner_1-rates": KeyboardInterrupt()})
    # What there is of the first seed is in tables already, and Alpaca's share with it.
    form, reasoning = (out / "table.md").read_text().split("## Reasoning")
    assert "Aligner-1 (828 parameters) keeps 50% [" in form
    assert "| lora_8 " in reasoning
    assert "aligner_1" not in reasoning
    status, begun = reproduce()
    second = [f"{task}-{arm}-1" for arm in ("lora_8", "aligner_1") for task in ("alpaca", "gsm8k")]
    assert (status, begun) == (0, ["gsm8k-aligner_1-rates", "gsm8k-aligner_1-0", *second])
    assert "6 cells, 6 of 12 being there" in capsys.readouterr().out
    assert reproduce() == (0, [])
    with pytest.raises(InputError, match=r"made with other settings \(.*sft\.steps is 9 and was 36\)"):
        reproduce("--steps=9")


def test_an_arm_without_a_tuning_is_not_trained(reproduce, capsys):
    status, begun = reproduce(**{"gsm8k-aligner_1-rates": InputError("it ended with status 1")})
    assert status == 1
    assert not {"gsm8k-aligner_1-0", "gsm8k-aligner_1-1"} & set(begun)
    assert "alpaca-aligner_1-1" in begun
    assert "without it aligner_1 has no rate for gsm8k" in capsys.readouterr().err


def test_an_arm_that_never_learned_stops_no_other(reproduce, data: Path, capsys):
    assert reproduce()[0] == 0
    table = (data.parent / "out" / "table.md").read_text()
    tuning = data.parent / "out" / "cells" / "gsm8k-aligner_1-rates.json"
    cell = json.loads(tuning.read_text())
    for each in cell["result"]["sweep"]:
        each["heldout_loss"] = math.nan
    tuning.write_text(json.dumps(cell))
    assert reproduce() == (1, [])
    assert "gsm8k, aligner_1, learning rates ended with no finite loss" in capsys.readouterr().err
    assert (data.parent / "out" / "table.md").read_text().partition("Reasoning")[0] == table.partition("Reasoning")[0]


@pytest.mark.parametrize(
    "flag", ["--heldout=1", "--larg", "--rates=nan,0.1", "--rates=0.1,0.1", "--rates=0", "--seeds=0"]
)
def test_what_no_table_could_be_made_of_is_refused_at_once(reproduce, flag: str, capsys):
    with pytest.raises(SystemExit):
        reproduce(flag)
    assert flag.partition("=")[0] in capsys.readouterr().err


def test_the_default_is_made_within_ninety_minutes_by_its_forecast(monkeypatch: pytest.MonkeyPatch):
    small, cells, parts = reproduce_small, reproduce_cells, compare_data

    def grid(*flags: str):
        monkeypatch.setattr(sys, "argv", ["reproduce_small.py", *flags])
        args = small.arguments()
        arms = {"alpaca": args.form_arms, "gsm8k": args.reasoning_arms}
        # Tokens an example, as the two have.
        length = {"alpaca": 90, "gsm8k": 180}

        def split_of(task: str, examples: int):
            part = parts.Part(Path(task), "", examples, examples * length[task])
            return parts.Split(part, part)

        splits = [{t: split_of(t, n) for t in arms} for n in (args.heldout, args.tuning_heldout)]
        sizes = cells.Sizes(base="model", dtype="bfloat16", rows=args.rows, length=args.length, steps=args.steps)
        return cells.Grid(arms, args.seeds, args.rates, sizes, *splits, args.template)

    def minutes(*flags: str) -> float:
        made = grid(*flags)
        return sum(map(made.seconds, made.cells())) / 60

    assert 45 < minutes() < 85
    assert minutes("--large") > 2 * minutes()
    # A tuning trains as many adapters as there are rates, in one process.
    tuning = cells.Tuning("gsm8k", "aligner_1")
    one, four = (grid(f"--rates={rates}").seconds(tuning) for rates in ("0.1", "0.1,0.2,0.3,0.4"))
    assert four - cells.START_SECONDS == pytest.approx(4 * (one - cells.START_SECONDS), rel=1e-12)

"""The reproduction with simulated runs: its cells, resuming, the files, the forecast."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from reproduce_results import made_up

from aligner_jax.errors import InputError
from aligner_jax.studies import cell_runs, reproduce_cells, reproduce_small, splits


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with 30 examples in the format of each task."""
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
    """Runs the script with flags and simulated runs, which end at once with results derived from their settings."""
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
            # The best rate is the second for LoRA and the third for Aligners.
            best = rates[1] if rank == 2 else rates[2]
            losses = [{"lr": rate, "heldout_loss": 2 + abs(np.log(rate / best))} for rate in rates]
            report = {"adapters": losses, "best": 0}
        else:
            gains = np.linspace(1, 2, 8) * rank + 0.01 * config["seed"]
            made = made_up(gains.tolist(), 460_800 if rank == 2 else 828)
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
    # LoRA comes first, since shares are relative to it.
    pairs = [f"{task}-{arm}" for arm in ("lora_8", "aligner_1") for task in ("alpaca", "gsm8k")]
    assert begun == [f"{pair}-{what}" for pair in pairs for what in ("rates", 0)] + [f"{pair}-1" for pair in pairs]
    settings = {p.stem: json.loads(p.read_text())["settings"]["sft"] for p in (out / "cells").iterdir()}
    assert len({tuple(settings[f"{pair}-rates"]["sweep"]["lr"]) for pair in pairs}) == 1
    assert {settings[f"{pair}-rates"]["steps"] for pair in pairs} == {settings[f"{pair}-1"]["steps"] for pair in pairs}
    assert [settings[f"alpaca-{arm}-1"]["optim"]["lr"] for arm in ("aligner_1", "lora_8")] == [0.01, 0.003]
    assert settings["alpaca-lora_8-1"]["seed"] == 1
    # Evaluation data of the tables is used neither for training nor for tuning.
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
    # The tables hold the finished cells of the first seed, and Alpaca's share.
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
    small, cells, parts = reproduce_small, reproduce_cells, splits

    def grid(*flags: str):
        monkeypatch.setattr(sys, "argv", ["reproduce_small.py", *flags])
        args = small.arguments()
        arms = {"alpaca": args.form_arms, "gsm8k": args.reasoning_arms}
        # Tokens per example of the two tasks.
        length = {"alpaca": 90, "gsm8k": 180}

        def split_of(task: str, examples: int):
            part = parts.Part(Path(task), "", examples, examples * length[task])
            return parts.Split(part, part)

        samples = [{t: split_of(t, n) for t in arms} for n in (args.heldout, args.tuning_heldout)]
        sizes = cells.Sizes(base="model", dtype="bfloat16", rows=args.rows, length=args.length, steps=args.steps)
        return cells.Grid(arms, args.seeds, args.rates, sizes, *samples, args.template)

    def minutes(*flags: str) -> float:
        made = grid(*flags)
        return sum(map(made.seconds, made.cells())) / 60

    assert 45 < minutes() < 85
    assert minutes("--large") > 2 * minutes()
    # A tuning trains one adapter per rate, in one process.
    tuning = cells.Tuning("gsm8k", "aligner_1")
    one, four = (grid(f"--rates={rates}").seconds(tuning) for rates in ("0.1", "0.1,0.2,0.3,0.4"))
    assert four - cells.START_SECONDS == pytest.approx(4 * (one - cells.START_SECONDS), rel=1e-12)

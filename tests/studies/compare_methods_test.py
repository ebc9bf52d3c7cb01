"""The comparison on a tiny model: whole cells, resuming, refusals, and the tables."""

import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import places
import pytest
from rich.console import Console
from scipy import stats

from aligner_jax.errors import InputError
from aligner_jax.runtime.config import parse_config
from aligner_jax.studies import cell_runs, cells, compare_methods, compare_table, splits
from aligner_jax.train import train

FRUITS = ("apple", "pear", "plum", "fig")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with ten short examples in the format of Alpaca and of PKU-SafeRLHF."""
    folder = tmp_path / "data"
    for name in ("sft", "pref"):
        (folder / name).mkdir(parents=True)
    asked = [f"Name fruit number {i}." for i in range(10)]
    named = [f"With pleasure: {FRUITS[i % 4]} {i}." for i in range(10)]
    records = [{"instruction": a, "input": "", "output": n} for a, n in zip(asked, named, strict=True)]
    (folder / "sft" / "alpaca_random_9k.json").write_text(json.dumps(records))
    pairs = [{"prompt": a, "response": [n, "No."]} for a, n in zip(asked, named, strict=True)]
    (folder / "pref" / "pku_saferlhf_dpo_5k.json").write_text(json.dumps(pairs))
    return folder


SIZES = ["--rows=2", "--length=128", "--steps=2", "--stage1-steps=1", "--dpo-steps=2", "--heldout=2"]
SMALL = [*SIZES, "--heldout-pairs=3", "--dtype=float32", "--seeds=1"]


def test_the_command_runs_the_package_and_a_run_that_fails_ends_no_other(tiny_model: Path, data: Path):
    out = data.parent / "out"
    # This folder is in the way of the first cell's workdir.
    (out / "runs" / "alpaca-bias_o-0").mkdir(parents=True)
    (out / "runs" / "alpaca-bias_o-0" / "sft").write_text("")
    study = "aligner_jax.studies.compare_methods"
    command = [sys.executable, "-m", study, f"--base={tiny_model}", f"--data={data}", *SMALL]
    done = subprocess.run(
        [*command, f"--out={out}", "--tasks=alpaca", "--arms=bias_o,aligner_1"],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        cwd=places.ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert "[1/2] alpaca, bias_o, seed 0: failed" in done.stdout
    assert done.stderr.startswith("error: alpaca, bias_o, seed 0 ended with status 1: ")
    assert done.stderr.count("\n") == 1
    assert [path.name for path in (out / "cells").iterdir()] == ["alpaca-aligner_1-0.json"]
    assert (out / "table.md").read_text() in done.stdout
    # A real run made it and left all of its files except the checkpoints.
    result = json.loads((out / "cells" / "alpaca-aligner_1-0.json").read_text())["result"]
    workdir = out / "runs" / "alpaca-aligner_1-0" / "sft"
    report = json.loads((workdir / "report.json").read_text())
    assert (result["base_loss"], result["loss"]) == tuple(report[k]["heldout_loss"] for k in ("before", "after"))
    assert result["parameters"] == 32 + 2 * 4
    assert not (workdir / "checkpoints").exists()


def test_a_table_cell_by_cell(tiny_model: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    """All runs share this process, so that programs are compiled once; one is killed before the second stage."""
    runs, methods, out, begun = cell_runs, compare_methods, data.parent / "out", []

    def run_here(file: Path, workdir: Path, cell) -> None:
        begun.append(f"{cell.name}/{workdir.name}")
        if begun == ["alpaca-aligner_1-0/sft", "pku-aligner_1-0/sft", "pku-aligner_1-0/dpo"]:
            raise KeyboardInterrupt
        train(parse_config(json.loads(file.read_text())), workdir, Console(file=io.StringIO()))

    def compare(*flags: str) -> int:
        given = [f"--base={tiny_model}", f"--data={data}", f"--out={out}", "--tasks=alpaca,pku", *SMALL, *flags]
        monkeypatch.setattr(sys, "argv", ["compare_methods.py", *given])
        return methods.compare(methods.arguments())

    monkeypatch.setattr(runs, "_train", run_here)
    with pytest.raises(KeyboardInterrupt):
        compare("--arms=aligner_1")
    assert [path.name for path in (out / "cells").iterdir()] == ["alpaca-aligner_1-0.json"]
    begun.clear()
    begun.append("again")
    assert compare("--arms=aligner_1") == 0
    # Neither a finished cell nor a finished stage is run again.
    assert begun == ["again", "pku-aligner_1-0/dpo"]
    shown = capsys.readouterr().out
    assert "1 cells, 1 of 2 being there" in shown
    table = (out / "table.md").read_text()
    assert table in shown
    alpaca, pku = table.split("## pku")
    for part, columns in ((alpaca, ("held-out loss", "base")), (pku, ("held-out accuracy", "95 % interval"))):
        assert all(text in part for text in ("aligner_1", "tokens/s", *columns))
    assert "3 held-out pairs" in pku
    stage2 = json.loads((out / "runs" / "pku-aligner_1-0" / "dpo" / "config.json").read_text())
    assert stage2["adapter"]["init_from"] == str(out / "runs" / "pku-aligner_1-0" / "sft" / "adapter.safetensors")
    assert stage2["objective"]["name"] == "dpo"

    with pytest.raises(InputError, match=r"other settings \(sft\.steps is 3 and was 2\)"):
        compare("--arms=aligner_1", "--steps=3")
    assert len(begun) == 2
    assert (out / "table.md").read_text() == table


def test_what_is_held_out_is_trained_on_by_no_arm(data: Path, tmp_path: Path):
    file = data / "sft" / "alpaca_random_9k.json"
    last = splits.split("alpaca", file, 3, tmp_path)
    tuning = splits.split("alpaca", file, 3, tmp_path, tuning=True)
    parts = {name: part.text.splitlines() for name, part in (("train", last.train), ("heldout", last.heldout))}
    assert (len(parts["train"]), len(parts["heldout"])) == (7, 3)
    assert not set(parts["train"]) & set(parts["heldout"])
    tried = set(tuning.train.text.splitlines()) | set(tuning.heldout.text.splitlines())
    assert tried == set(parts["train"])
    assert (tuning.train.examples, tuning.heldout.examples) == (4, 3)
    assert tuning.train.path != last.train.path


def test_of_preferences_prompts_are_held_out_at_one_end_and_tuned_by_at_the_other(tmp_path: Path):
    pairs = [{"prompt": f"P{i}", "response": [f"yes {j}", "no"]} for i in range(8) for j in (0, 1, 1)]
    file = tmp_path / "pairs.json"
    # Each prompt occurs at both ends of the file.
    file.write_text(json.dumps(pairs[::3] + pairs[1:2] + pairs))

    def prompts(part) -> list[str]:
        return [json.loads(line)["prompt"] for line in part.text.splitlines()]

    last = splits.split("pku", file, 3, tmp_path)
    assert prompts(last.heldout) == ["P0", "P1", "P2"]
    # Each prompt has two different pairs, and the first one is used for evaluation.
    assert prompts(last.train) == [f"P{i}" for i in range(3, 8) for _ in range(2)]
    tuning = splits.split("pku", file, 3, tmp_path, tuning=True, tuning_heldout=2)
    assert prompts(tuning.heldout) == ["P6", "P7"]
    assert prompts(tuning.train) == [f"P{i}" for i in range(3, 6) for _ in range(2)]
    with pytest.raises(InputError, match="too few to hold out 8"):
        splits.split("pku", file, 8, tmp_path)
    with pytest.raises(InputError, match="too few"):
        splits.split("pku", file, 4, tmp_path, tuning=True)


def test_an_accuracy_is_as_sure_as_prompts_and_seeds_allow():
    table = compare_table
    sizes = cells.Sizes("model", "float32", rows=4, length=256, steps=5, stage1_steps=6, dpo_steps=7)
    rest = {"parameters": 828, "pairs": 200, "prompts": 100, "margin": 0.5, "tokens_per_second": 400.0}

    def each(right: int) -> list[list[float]]:
        return [[prompt, float(prompt < right)] for prompt in range(100) for _ in range(2)]

    def text(*rights: int) -> str:
        results = {
            cells.Cell("pku", "aligner_1", seed): {**rest, "accuracy": right / 100, "each": each(right)}
            for seed, right in enumerate(rights)
        }
        return table.preferences(results, sizes)

    assert "200 held-out pairs of 100 prompts" in text(60)
    # 100 trials count, not 200 pairs or 600. Wilson's interval is [0.502, 0.691]; Student's quantile is a little
    # larger.
    assert "| 0.600 | [0.500, 0.692] |" in " ".join(text(60).split())
    half = stats.t.ppf(0.975, 99) * math.sqrt(0.24 / 99)
    assert f"0.600 ± 0.000 | [{0.6 - half:.3f}, {0.6 + half:.3f}]" in " ".join(text(60, 60, 60).split())
    # Seeds that differ widen the interval: their variance is added to that over the prompts' means.
    of_seeds, of_prompts = 0.1**2 / 3, np.var([1.0] * 50 + [2 / 3] * 10 + [1 / 3] * 10 + [0.0] * 30) / 99
    variance = of_seeds + of_prompts
    half = stats.t.ppf(0.975, variance**2 / (of_seeds**2 / 2 + of_prompts**2 / 99)) * math.sqrt(variance)
    assert f"0.600 ± 0.100 | [{0.6 - half:.3f}, {0.6 + half:.3f}]" in " ".join(text(50, 60, 70).split())


def test_what_diverged_comes_last_and_is_no_best_rate():
    table = compare_table
    sizes = cells.Sizes("model", "float32", rows=4, length=256, steps=5, stage1_steps=6, dpo_steps=7)
    rest = {"parameters": 828, "pairs": 4, "prompts": 2, "margin": 0.5, "tokens_per_second": 400.0}
    results = {}
    for arm, share in (("aligner_1", math.nan), ("lora_8", 0.25), ("bias_o", 0.75)):
        for seed in (0, 1):
            each = [[prompt, share] for prompt in (0, 0, 1, 1)]
            results[cells.Cell("pku", arm, seed)] = {**rest, "accuracy": share, "each": each}
    rows = table.preferences(results, sizes).splitlines()[-3:]
    assert [row.split()[1] for row in rows] == ["bias_o", "lora_8", "aligner_1"]
    assert "| nan ± nan | [nan, nan] |" in " ".join(rows[-1].split())
    losses = {
        cells.Cell("alpaca", arm, seed): {**rest, "loss": loss, "base_loss": 2.0}
        for arm, loss in (("aligner_1", math.nan), ("lora_8", 1.5), ("bias_o", 1.25))
        for seed in (0, 1)
    }
    assert [row.split()[1] for row in table.answers("alpaca", losses, sizes).splitlines()[-3:]] == [
        "bias_o", "lora_8", "aligner_1"
    ]  # fmt: skip
    tried = {1 / 3: math.nan, 1.0: 2.25, 3.0: 2.5}
    of_rates = {cells.Cell("alpaca", "lora_8", 0, scale): {"loss": loss} for scale, loss in tried.items()}
    rate = cells.ARMS["lora_8"].sft
    assert table.tuning(["alpaca"], of_rates).split()[-2] == f"{rate:.2g}"


def test_the_best_rate_is_that_of_the_lowest_loss():
    table = compare_table
    losses = {1 / 3: 2.5, 1.0: 2.25, 3.0: 2.125}
    results = {
        cells.Cell(task, "lora_8", 0, scale): {"loss": x} for task in ("alpaca", "pku") for scale, x in losses.items()
    }
    rows = [line for line in table.tuning(["alpaca", "pku"], results).splitlines() if line.startswith("| lora_8")]
    rates = [getattr(cells.ARMS["lora_8"], of) for of in ("sft", "dpo")]
    found = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert found == [["lora_8", f"{r:.2g}", "2.5000", "2.2500", "2.1250", f"{3 * r:.2g}"] for r in rates]

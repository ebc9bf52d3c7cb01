"""scripts/compare_methods.py on a tiny model: whole cells, what is done again and what is refused, and the tables."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"
FRUITS = ("apple", "pear", "plum", "fig")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch):
    """Imports a file of scripts/ by its plain name, as the scripts import each other."""
    monkeypatch.syspath_prepend(str(SCRIPTS))

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with ten short examples of Alpaca and of PKU-SafeRLHF's form each."""
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


def _compare(model: Path, data: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPTS / "compare_methods.py"), f"--base={model}", f"--data={data}"]
    sizes = ["--rows=2", "--length=128", "--steps=2", "--stage1-steps=1", "--dpo-steps=2"]
    small = [*sizes, "--heldout=2", "--heldout-pairs=3", "--dtype=float32", "--tasks=alpaca,pku", "--seeds=1"]
    # Nothing that is measured here depends on how well the programs are compiled.
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    return subprocess.run(
        [*command, *small, f"--out={data.parent / 'out'}", *flags], env=environment, capture_output=True, text=True
    )


def test_a_table_cell_by_cell(tiny_model: Path, data: Path):
    out = data.parent / "out"
    done = _compare(tiny_model, data, "--arms=aligner_1,bias_o")
    assert done.returncode == 0, done.stderr
    table = (out / "table.md").read_text()
    assert table in done.stdout
    alpaca, pku = table.split("\n\n## pku")
    for part, columns in ((alpaca, ("held-out loss", "base")), (pku, ("held-out accuracy", "95 % interval"))):
        assert all(text in part for text in ("aligner_1", "bias_o", "tokens/s", *columns))
    assert "3 held-out pairs" in pku

    cells = {path.stem: json.loads(path.read_text()) for path in (out / "cells").iterdir()}
    assert cells.keys() == {f"{task}-{arm}-0" for task in ("alpaca", "pku") for arm in ("aligner_1", "bias_o")}
    result = cells["alpaca-aligner_1-0"]["result"]
    assert result["parameters"] == 32 + 2 * 4
    # A run of the package made it, and left what a run leaves but for the checkpoints.
    report = json.loads((out / "runs" / "alpaca-aligner_1-0" / "sft" / "report.json").read_text())
    assert (result["base_loss"], result["loss"]) == tuple(report[k]["heldout_loss"] for k in ("before", "after"))
    assert not (out / "runs" / "alpaca-aligner_1-0" / "sft" / "checkpoints").exists()
    stage2 = json.loads((out / "runs" / "pku-bias_o-0" / "dpo" / "config.json").read_text())
    assert stage2["adapter"]["init_from"] == str(out / "runs" / "pku-bias_o-0" / "sft" / "adapter.safetensors")
    assert stage2["objective"]["name"] == "dpo"

    # As if it was ended during the last cell's second run: nothing else is done again.
    (out / "cells" / "pku-bias_o-0.json").unlink()
    shutil.rmtree(out / "runs" / "pku-bias_o-0" / "dpo")
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name in ("finished", "report.json")}
    again = _compare(tiny_model, data, "--arms=aligner_1,bias_o")
    assert again.returncode == 0, again.stderr
    assert "1 cells, 3 of 4 being there" in again.stdout
    assert "[1/1] pku, bias_o, seed 0" in again.stdout
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    made = json.loads((out / "cells" / "pku-bias_o-0.json").read_text())["result"]
    timing = ("seconds", "tokens_per_second")
    assert {k: v for k, v in made.items() if k not in timing} == {
        k: v for k, v in cells["pku-bias_o-0"]["result"].items() if k not in timing
    }

    refused = _compare(tiny_model, data, "--arms=aligner_1,bias_o", "--steps=3")
    assert refused.returncode == 1
    assert "sft.steps is 3 and was 2" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert (out / "table.md").read_text().split("\n\n## pku")[0] == alpaca


def test_a_cell_that_fails_ends_no_other(tiny_model: Path, data: Path):
    out = data.parent / "out"
    # In the way of the first cell's workdir.
    (out / "runs" / "alpaca-bias_o-0").mkdir(parents=True)
    (out / "runs" / "alpaca-bias_o-0" / "sft").write_text("")
    done = _compare(tiny_model, data, "--arms=bias_o")
    assert done.returncode == 1
    assert "[1/2] alpaca, bias_o, seed 0: failed" in done.stdout
    assert "## pku" in (out / "table.md").read_text()
    assert "error: alpaca, bias_o, seed 0 ended with status 1: " in done.stderr
    assert not (out / "cells" / "alpaca-bias_o-0.json").exists()


def test_what_is_held_out_is_trained_on_by_no_arm(script, data: Path, tmp_path: Path):
    compare_data = script("compare_data")
    file = data / "sft" / "alpaca_random_9k.json"
    last = compare_data.split("alpaca", file, 3, tmp_path)
    tuning = compare_data.split("alpaca", file, 3, tmp_path, tuning=True)
    parts = {name: part.text.splitlines() for name, part in (("train", last.train), ("heldout", last.heldout))}
    assert (len(parts["train"]), len(parts["heldout"])) == (7, 3)
    assert not set(parts["train"]) & set(parts["heldout"])
    tried = set(tuning.train.text.splitlines()) | set(tuning.heldout.text.splitlines())
    assert tried == set(parts["train"])
    assert (tuning.train.examples, tuning.heldout.examples) == (4, 3)
    assert tuning.train.path != last.train.path


def test_the_accuracy_of_several_seeds_is_as_sure_as_the_pairs_allow(script):
    cells, table = script("compare_cells"), script("compare_table")
    sizes = cells.Sizes("model", "float32", rows=4, length=256, steps=5, stage1_steps=6, dpo_steps=7)
    rest = {"parameters": 828, "pairs": 100, "margin": 0.5, "tokens_per_second": 400.0}
    results = {cells.Cell("pku", "aligner_1", s): {**rest, "accuracy": a} for s, a in enumerate((0.5, 0.6, 0.7))}
    row = table.preferences(results, sizes).splitlines()[-1]
    assert "0.600 ± 0.100" in row
    # Wilson's interval of 60 in 100, not of 180 in 300.
    assert "[0.502, 0.691]" in row

"""The four diffs of docs/extending.md apply to a copy of the package, which then has what they add."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import doc_pages
import places
import pytest
from doc_diffs import Hunk, apply, diffs_of
from safetensors.numpy import load_file, save_file
from tiny_runs import sft_rows, write_rows

import aligner_jax as aj
from aligner_jax.weights.base import load_base
from scripts.lib.tiny_llama import write_tiny_llama

DIFFS = diffs_of(doc_pages.read("docs/extending.md"))

USE = """
import json
from pathlib import Path

import numpy as np
from rich.console import Console

import aligner_jax as aj
from aligner_jax.data.sources import load_dataset
from aligner_jax.evals.interface import parse_evaluate_config
from aligner_jax.evals.run import evaluate

adapter = aj.init_adapter("query_bias", aj.load_base("tiny").config, start_layer=1)
quiz = load_dataset("quiz.jsonl")
exact = {"base": {"path": "tiny"}, "batch_size": 2,
         "evaluation": {"name": "exact", "path": "exact.jsonl", "template": "none", "max_new_tokens": 2}}
scores = evaluate(parse_evaluate_config(exact), None, Path("results"), Console(quiet=True)).scores
base = aj.load_base("seed")
tokens_bt = np.arange(1, 9)[None]
logits_btv = aj.apply(base.params, None, tokens_bt, config=base.config)
print(json.dumps({
    "package": aj.__file__, "adapter": adapter.num_params, "quiz": [vars(x) for x in quiz.examples], "scores": scores,
    "dropped": dict(quiz.dropped), "biases": base.config.qkv_bias, "logits": np.asarray(logits_btv[0, -1]).tolist(),
}, default=str))
"""


def write_seed_oss(folder: Path) -> None:
    """Writes the tiny model as a Seed-OSS, with biases that are zero."""
    write_tiny_llama(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "seed_oss", "attention_bias": True}))
    tensors = load_file(folder / "model.safetensors")
    biases = {
        name.replace("weight", "bias"): 0 * weight[:, 0]
        for name, weight in tensors.items()
        if any(f"{projection}_proj" in name for projection in "qkv")
    }
    save_file({**tensors, **biases}, folder / "model.safetensors")


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """The folder, and what a program prints that uses the copy of the package with all four additions."""
    folder = tmp_path_factory.mktemp("extended")
    shutil.copytree(places.ROOT / "aligner_jax", folder / "aligner_jax", ignore=shutil.ignore_patterns("__pycache__"))
    apply(DIFFS, folder)
    write_tiny_llama(folder / "tiny")
    write_seed_oss(folder / "seed")
    rows = [{"question": f"Which is {i}?", "choices": ["none", f"it is {i}"], "right": 1} for i in range(3)]
    write_rows(folder / "quiz.jsonl", [*rows, {**rows[0], "right": None}])
    questions = [row["instruction"] for row in sft_rows(3)]
    (said,) = aj.sample(load_base(folder / "tiny"), None, questions[1:2], max_new_tokens=2)
    assert said.strip()
    answers = ("no model says so", f" {said.upper()}\n", "no model says so")
    exact = [{"question": question, "answer": answer} for question, answer in zip(questions, answers, strict=True)]
    write_rows(folder / "exact.jsonl", exact)
    ended = subprocess.run(
        [sys.executable, "-c", USE], cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(folder)},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return folder, json.loads(ended.stdout.splitlines()[-1])


def test_the_copy_was_used(used: tuple[Path, dict]):
    folder, found = used
    assert Path(found["package"]).parents[1] == folder


def test_the_method_has_its_parameters(used: tuple[Path, dict]):
    assert used[1]["adapter"] == (4 - 1) * 4 * 8


def test_the_source_is_found_by_its_fields_and_drops_what_is_not_answered(used: tuple[Path, dict]):
    _, found = used
    assert len(found["quiz"]) == 3
    assert found["dropped"] == {"no right choice": 1}
    assert "it is 2" in json.dumps(found["quiz"][2])


def test_the_evaluation_counts_right_answers(used: tuple[Path, dict]):
    folder, found = used
    assert (found["scores"]["right"], found["scores"]["questions"]) == (1, 3)
    assert (folder / "results" / "results.json").exists()


def test_the_architecture_is_read_with_its_biases(used: tuple[Path, dict]):
    folder, found = used
    assert found["biases"] is True
    assert len(found["logits"]) == load_base(folder / "tiny").config.vocab_size


@pytest.mark.parametrize(
    ("diff", "said"),
    [
        ({"a.py": [Hunk(["y = 1"], ["y = 2"])]}, "0 times"),
        ({"a.py": [Hunk([], ["x = 1"])]}, "exists already"),
        ({"a.py": [Hunk(["x = 1"], ["x = 2"])]}, "2 times"),
    ],
)
def test_a_diff_that_does_not_fit_is_refused(diff: dict, said: str, tmp_path: Path):
    (tmp_path / "a.py").write_text("x = 1\nx = 1\n")
    with pytest.raises(AssertionError, match=said):
        apply(diff, tmp_path)

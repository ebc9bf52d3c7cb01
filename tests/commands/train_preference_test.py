"""Whole runs on preferences: both stages, contents of a workdir, resuming after a kill, refusals."""

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
from killed_runs import check_killed_run, logged
from tiny_runs import on_pairs, write_rows
from whole_runs import check_not_cut_short, config_file, run

from aligner_jax.errors import InputError
from aligner_jax.peft import init_adapter
from aligner_jax.peft.artifact import load_adapter, save_adapter
from aligner_jax.weights.base import load_base

STEPS = 6
FRUITS = ("apple", "pear", "plum", "fig")


@pytest.fixture
def settings(tiny_run: dict, tmp_path: Path) -> dict:
    """A config, as nested dicts, of a DPO run. Polite answers are preferred."""
    rows = []
    for i in range(12):
        polite, curt = f"With pleasure: {FRUITS[i % 4]} {i}.", f"{FRUITS[i % 4]}{' no' * (i % 3)}."
        responses = (polite, curt) if i % 2 else (curt, polite)
        flags = {f"is_response_{n}_safe": True for n in (0, 1)}
        answers = {f"response_{n}": text for n, text in enumerate(responses)}
        rows.append({"prompt": f"Name fruit number {i}.", **answers, **flags, "safer_response_id": (i + 1) % 2})
    tiny_run["data"]["heldout_rows"] = 3
    return {
        **on_pairs(tiny_run, write_rows(tmp_path / "pairs.jsonl", rows), beta=0.1),
        "optim": {"lr": 0.01, "accumulate": 2}, "steps": STEPS, "log_every": 2, "eval_every": 3,
        "checkpoint": {"every": 2},
    }  # fmt: skip


def _saved(settings: dict, folder: Path, **options) -> str:
    """Returns the path of a saved adapter with such options and nonzero gates for the settings' base."""
    base = load_base(settings["base"]["path"])
    adapter = init_adapter("aligner", base.config, **options)
    adapter = adapter.replace(trainable={**adapter.trainable, "gates_ln": adapter.trainable["gates_ln"] + 0.1})
    save_adapter(adapter, folder / "saved.safetensors", base)
    return str(folder / "saved.safetensors")


def _lines(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_both_stages(settings: dict, tmp_path: Path):
    """Stage 2 begins with the Aligner of stage 1 and uses it as the reference, as in the paper."""
    first = {**settings, "objective": {"name": "sft"}, "optim": {"lr": 0.05}, "steps": 4}
    run(first, tmp_path / "sft")
    path = tmp_path / "sft" / "adapter.safetensors"
    settings["adapter"]["init_from"] = str(path)
    trained, text = run(settings, tmp_path / "dpo")

    training = [line for line in _lines(tmp_path / "dpo") if "loss" in line]
    assert [line["step"] for line in training] == [2, 4, 6]
    wanted = {"loss", "grad_norm", "tokens_per_second", "learning_rate"}
    wanted |= {"chosen_reward", "rejected_reward", "margin", "accuracy", "kl"}
    assert all(wanted <= line.keys() for line in training)
    assert training[-1]["margin"] > training[0]["margin"]
    heldout = [line for line in _lines(tmp_path / "dpo") if "heldout_loss" in line]
    assert [line["step"] for line in heldout] == [3, 6]
    assert {"heldout_accuracy", "heldout_accuracy_low", "heldout_accuracy_high", "heldout_margin"} <= heldout[0].keys()

    report = json.loads((tmp_path / "dpo" / "report.json").read_text())
    # The policy begins as its own reference, so no margin differs from zero.
    assert report["before"]["loss"] == pytest.approx(np.log(2))
    assert (report["before"]["margin"], report["before"]["accuracy"], report["before"]["kl"]) == (0, 0.5, 0)
    assert report["after"]["margin"] > 0
    assert report["after"]["kl"] > 0
    assert report["after"]["pairs"] == 3
    assert report["num_params"] == trained.num_params
    for shown in ("training: 9 pairs", "held-out: 3 pairs", "its log-probabilities of 9 train pairs", "accuracy"):
        assert shown in text
    begun, ended = (load_adapter(file) for file in (path, tmp_path / "dpo" / "adapter.safetensors"))
    moved = np.abs(np.asarray(ended.trainable["tokens_pd"]) - np.asarray(begun.trainable["tokens_pd"])).max()
    assert 0 < moved < 0.2


def test_a_reference_kept_on_disk_and_one_computed_in_the_steps_train_alike(settings: dict, tmp_path: Path):
    reference = _saved(settings, tmp_path, num_tokens=1)
    settings |= {"objective": {"name": "ipo", "reference": reference}, "log_every": 1, "eval_every": 0}
    settings["data"]["packing"] = False
    settings["data"]["batch_size"] = 4
    runs = {}
    for cached in (True, False):
        settings["objective"]["cache_reference"] = cached
        # The search compiles the step for the reference of the file, whose options are not those of the policy.
        settings["remat"] = "full" if cached else "auto"
        workdir = tmp_path / str(cached)
        runs[cached], _ = run(settings, workdir)
        assert (workdir / "reference_train.npz").exists() == cached
    losses = [[line["loss"] for line in _lines(tmp_path / run) if "loss" in line] for run in ("True", "False")]
    assert len(losses[0]) == STEPS
    np.testing.assert_allclose(*losses, rtol=1e-5)
    for leaf in runs[True].trainable:
        np.testing.assert_allclose(*(runs[cached].trainable[leaf] for cached in (True, False)), atol=1e-3)


def test_what_the_reference_said_is_used_again_or_computed_anew_with_a_word(settings: dict, tmp_path: Path):
    """One of two tables is damaged."""
    workdir = tmp_path / "run"
    settings |= {"objective": {"name": "dpo", "reference": None}, "eval_every": 0}
    run({**settings, "steps": 2}, workdir)
    damaged, whole = workdir / "reference_train.npz", workdir / "reference_heldout.npz"
    content, inode = damaged.read_bytes(), whole.stat().st_ino
    damaged.write_bytes(content[:100])
    _, text = run({**settings, "steps": 4}, workdir)
    assert "resuming after step 2 of 4" in text
    assert "reference_train.npz is damaged" in text
    assert "9 train pairs" in text
    assert damaged.read_bytes() == content
    assert "3 heldout pairs" not in text
    assert whole.stat().st_ino == inode


def test_a_run_is_not_cut_short_after_the_fact(settings: dict, tmp_path: Path):
    check_not_cut_short(settings, tmp_path / "run")


def test_a_reference_may_be_any_adapter_of_the_base(settings: dict, tmp_path: Path):
    """The reference may even have other options. The policy begins elsewhere, so they differ before the first step."""
    settings["objective"]["reference"] = _saved(settings, tmp_path, num_tokens=1)
    run({**settings, "steps": 1, "eval_every": 0}, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "report.json").read_text())["before"]["kl"] > 0


def test_killed_at_random_moments_the_adapter_is_byte_identical(settings: dict, tmp_path: Path):
    settings |= {"steps": 20, "log_every": 1, "eval_every": 0, "checkpoint": {"every": 3}}
    config = config_file(settings, tmp_path)
    seed = int.from_bytes(os.urandom(4))
    chance = random.Random(seed)
    # One kill comes between the reference's two tables, one within the steps.
    moments = [lambda workdir: (workdir / "reference_train.npz").exists(), logged(chance.randrange(1, 15))]
    workdirs = check_killed_run(config, tmp_path, moments, chance, f"seed {seed}")
    assert len({(workdir / "reference_train.npz").read_bytes() for workdir in workdirs}) == 1


def test_an_adapter_to_begin_with_must_be_the_configured_one(settings: dict, tmp_path: Path):
    path = _saved(settings, tmp_path, num_tokens=3, start_layer=1)
    settings["adapter"]["init_from"] = path
    with pytest.raises(InputError) as error:
        run(settings, tmp_path / "run")
    assert str(error.value) == (
        f"config.adapter.init_from, {path}, is aligner(gates=head, num_tokens=3, start_layer=1, "
        "tokens=model), but config.adapter is aligner(gates=head, num_tokens=2, start_layer=1, tokens=model)"
    )
    settings["adapter"]["init_from"] = str(tmp_path / "none.safetensors")
    with pytest.raises(InputError, match=r"none\.safetensors does not exist"):
        run(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_supervised_training_may_begin_with_an_adapter_too(settings: dict, tmp_path: Path):
    path = _saved(settings, tmp_path, num_tokens=2, start_layer=1)
    settings |= {"objective": {"name": "sft"}, "adapter": {"num_tokens": 2, "start_layer": 1, "init_from": path}}
    settings["optim"]["lr"] = 0.0
    adapter, _ = run({**settings, "steps": 1, "eval_every": 0}, tmp_path / "run")
    for name, leaf in load_adapter(path).trainable.items():
        np.testing.assert_array_equal(leaf, adapter.trainable[name])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda s: s["objective"].update(reference="/nowhere/a.safetensors"), "/nowhere/a.safetensors does not exist"),
        (lambda s: s["data"].update(sequence_length=40), "pairs.jsonl:1: the prompt has"),
        (lambda s: s["data"].update(template="alpaca", heldout_rows=12), "heldout_rows is 12"),
    ],
    ids=["no reference", "too long", "held out"],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing_behind(settings: dict, tmp_path: Path, change, expected: str):
    change(settings)
    with pytest.raises(InputError) as error:
        run(settings, tmp_path / "run")
    assert expected in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_examples_that_are_no_preferences_are_refused(settings: dict, tmp_path: Path):
    path = Path(settings["data"]["path"])
    path.write_text(json.dumps({"instruction": "a", "output": "b"}) + "\n")
    settings["data"] |= {"format": "alpaca", "heldout_rows": 0}
    with pytest.raises(InputError, match=r"pairs\.jsonl:1: a preference .* is needed"):
        run(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()

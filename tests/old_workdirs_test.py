"""Workdirs that older versions began still go on; what `tests/goldens/README.md` says is in each."""

import json
import shutil
from pathlib import Path

import numpy as np
import places
import pytest
from safetensors.numpy import load_file
from whole_runs import run

from aligner_jax.errors import InputError
from scripts.lib.tiny_llama import write_tiny_llama

WORKDIRS = places.GOLDENS / "workdirs"


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """The config of the samples, whose paths are relative."""
    monkeypatch.chdir(tmp_path)
    write_tiny_llama(tmp_path / "tiny")
    rows = [{"instruction": f"Name number {i}.", "output": f"It is {'very ' * (i % 4)}{i}."} for i in range(12)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "base": {"path": "tiny", "dtype": "float32"},
        "adapter": {"num_tokens": 1, "start_layer": 2},
        "data": {"path": "data.jsonl", "template": "chat", "sequence_length": 128, "batch_size": 2},
        "optim": {"lr": 0.01},
        "steps": 6,
        "log_every": 1,
        "checkpoint": {"every": 3, "keep": 9},
    }


def copied(name: str) -> Path:
    return Path(shutil.copytree(WORKDIRS / name, Path.cwd() / name))


def check_adapter(workdir: Path, name: str) -> None:
    found, wanted = load_file(workdir / "adapter.safetensors"), load_file(WORKDIRS / f"{name}.safetensors")
    assert found.keys() == wanted.keys()
    for leaf in wanted:
        np.testing.assert_allclose(found[leaf], wanted[leaf], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_run_that_an_older_version_began_ends_as_that_would_have_ended_it(settings: dict, schedule: str):
    settings["optim"]["schedule"] = schedule
    workdir = copied(schedule)
    _, text = run(settings, workdir)
    assert "resuming after step 3 of 6" in text
    assert ("its last update has rate 0" in text) == (schedule == "cosine")
    check_adapter(workdir, schedule)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert (lines[-1]["learning_rate"] == 0) == (schedule == "cosine")
    # The same again, from the checkpoint of this version.
    shutil.rmtree(workdir / "checkpoints" / "3")
    (workdir / "adapter.safetensors").unlink()
    _, text = run(settings, workdir)
    assert "resuming after step 6 of 6" in text
    check_adapter(workdir, schedule)


def test_a_new_cosine_ends_elsewhere(settings: dict):
    settings["optim"]["schedule"] = "cosine"
    run(settings, Path("new"))
    assert json.loads(Path("new/config.json").read_text())["optim"]["cosine_zero"] == "after_last"
    rates = [json.loads(line)["learning_rate"] for line in Path("new/metrics.jsonl").read_text().splitlines()]
    np.testing.assert_allclose(rates, 0.005 * (1 + np.cos(np.pi * np.arange(6) / 6)), rtol=1e-5)
    found, old = load_file("new/adapter.safetensors"), load_file(WORKDIRS / "cosine.safetensors")
    assert max(float(np.abs(found[leaf] - old[leaf]).max()) for leaf in old) > 1e-3


@pytest.mark.parametrize("missing", ["config.json", "inputs.json"])
def test_without_what_it_was_begun_with_an_old_run_does_not_go_on(settings: dict, missing: str):
    workdir = copied("constant")
    (workdir / missing).unlink()
    with pytest.raises(InputError, match=rf"{missing} is missing, .*: put it back, or choose another --workdir$"):
        run(settings, workdir)
    assert not (workdir / missing).exists()

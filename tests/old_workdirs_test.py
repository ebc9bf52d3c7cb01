"""Workdirs of older versions resume; `tests/goldens/README.md` describes each."""

import json
import shutil
from pathlib import Path

import numpy as np
import places
import pytest
from safetensors.numpy import load_file
from sample_runs import settings_of, write_inputs
from whole_runs import run

from aligner_jax.errors import InputError
from aligner_jax.peft.artifact import load_adapter
from aligner_jax.weights.base import load_base
from aligner_jax.weights.safetensors_header import read_header

WORKDIRS = places.GOLDENS / "workdirs"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder, with the base and the data of the samples, whose paths are relative."""
    monkeypatch.chdir(tmp_path)
    write_inputs(tmp_path)


@pytest.fixture
def settings(place: None) -> dict:
    """The config of the oldest samples; their data is the same under another name."""
    Path("sft.jsonl").rename("data.jsonl")
    found = settings_of("sft")
    found["data"]["path"] = "data.jsonl"
    return found


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
    # The run resumes again, from the checkpoint of this version.
    shutil.rmtree(workdir / "checkpoints" / "3")
    (workdir / "adapter.safetensors").unlink()
    _, text = run(settings, workdir)
    assert "resuming after step 6 of 6" in text
    check_adapter(workdir, schedule)


@pytest.mark.parametrize("name", ["constant", "sft"])
def test_under_remat_auto_an_old_run_keeps_that_of_its_config(settings: dict, name: str):
    """The checkpoints of the oldest versions do not say it, so that config.json decides."""
    workdir = copied(name)
    if name == "sft":
        Path("data.jsonl").rename("sft.jsonl")
        settings = settings_of("sft")
    _, text = run({**settings, "remat": "auto"}, workdir)
    assert "remat: full, as this run began" in text
    check_adapter(workdir, name)


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


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_a_run_of_version_0_1_0_goes_on_and_its_adapter_belongs_to_its_base(kind: str):
    workdir = copied(kind)
    tables = {path.name: path.read_bytes() for path in workdir.glob("*.npz")}
    assert len(tables) == (2 if kind == "dpo" else 0)
    _, text = run(settings_of(kind), workdir)
    assert "resuming after step 3 of 6" in text
    assert "made with another" not in text
    check_adapter(workdir, kind)
    assert {path.name: path.read_bytes() for path in workdir.glob("*.npz")} == tables
    # The metadata is the same, including the base's fingerprint, and the adapter loads over the base.
    headers = [read_header(path)[0] for path in (WORKDIRS / f"{kind}.safetensors", workdir / "adapter.safetensors")]
    old, new = ({name: text for name, text in header.items() if name != "digest"} for header in headers)
    assert new == {**old, "canary": new["canary"]}
    assert load_adapter(WORKDIRS / f"{kind}.safetensors", load_base("tiny")).num_params == 40

"""Resumed runs: finished, killed, without their checkpoints, or with changed inputs."""

import json
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from killed_runs import check_killed_run, logged
from whole_runs import check_not_cut_short, config_file, run

from aligner_jax.errors import InputError
from aligner_jax.runtime.config import parse_config
from aligner_jax.runtime.same_run import save_config
from aligner_jax.runtime.workdir import Workdir


@pytest.fixture
def settings(tiny_run: dict) -> dict:
    """A config, as nested dicts, of a run with evaluations between its steps."""
    return {
        **tiny_run, "data": {**tiny_run["data"], "heldout_rows": 3}, "optim": {"lr": 0.01, "accumulate": 2},
        "eval_every": 4, "checkpoint": {"every": 2},
    }  # fmt: skip


def test_a_finished_run_is_not_taken_again(settings: dict, tmp_path: Path):
    run(settings, tmp_path / "run")
    bytes_before = (tmp_path / "run" / "adapter.safetensors").read_bytes()
    metrics = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    _, text = run(settings, tmp_path / "run")
    assert "resuming after step 8 of 8" in text
    assert (tmp_path / "run" / "adapter.safetensors").read_bytes() == bytes_before
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == metrics


def test_a_run_is_not_cut_short_after_the_fact(settings: dict, tmp_path: Path):
    check_not_cut_short(settings, tmp_path / "run")


@pytest.mark.parametrize("name", ["lion", "muon"])
def test_with_every_option_a_run_in_two_parts_is_byte_identical(settings: dict, tmp_path: Path, name: str):
    settings["adapter"] |= {"num_tokens": 3, "gates": "token", "init": "words", "init_std": 0.3}
    settings["optim"] |= {"name": name, "gate_rate": 3.0, "decay_on": "tokens"}
    run(settings, tmp_path / "whole")
    for steps in (4, 8):
        _, text = run({**settings, "steps": steps}, tmp_path / "parts")
    assert "resuming after step 4 of 8" in text
    whole, parts = ((tmp_path / name / "adapter.safetensors").read_bytes() for name in ("whole", "parts"))
    assert whole == parts
    with pytest.raises(InputError, match=r"optim.gate_rate is 1.0 and was 3.0"):
        run({**settings, "optim": {**settings["optim"], "gate_rate": 1.0}}, tmp_path / "parts")


def test_killed_at_random_moments_the_adapter_is_byte_identical(settings: dict, tmp_path: Path):
    # A signal takes time, so the run is not over for 20 steps after the last moment.
    settings |= {"steps": 100, "log_every": 1, "eval_every": 0, "report": {"form": None}}
    settings["checkpoint"] = {"every": 3}
    config = config_file(settings, tmp_path)
    seed = int.from_bytes(os.urandom(4))
    chance = random.Random(seed)
    moments = [logged(lines) for lines in sorted(chance.sample(range(1, 80), 3))]
    signals = (signal.SIGKILL, signal.SIGTERM)
    check_killed_run(config, tmp_path, moments, chance, f"seed {seed}", signals)


LOSES_ITS_CHECKPOINTS = """
import contextlib, io, json, os
from pathlib import Path
from rich.console import Console
from aligner_jax.runtime import command
from aligner_jax.runtime.config import parse_config
from aligner_jax.train import train

workdir, text = Path(os.environ["WORKDIR"]), os.environ["TEXT"]
checkpoints = workdir / "checkpoints"

class Screen(io.StringIO):
    def write(self, shown):
        if text in shown and checkpoints.is_dir():
            # A save may be under way, and make the folder again.
            for number in range(99):
                with contextlib.suppress(OSError):
                    checkpoints.rename(workdir / f"elsewhere_{number}")
                with contextlib.suppress(OSError):
                    checkpoints.write_text("in the way")
                    break
        return super().write(shown)

settings = json.loads(os.environ["SETTINGS"])
command.run(lambda: train(parse_config(settings), workdir, Console(width=100, file=Screen())))
"""


@pytest.mark.parametrize("last", ["step 5/8", "step 8/8"])
def test_a_checkpoint_that_cannot_be_written_ends_the_run(tiny_run: dict, tmp_path: Path, last: str):
    workdir = tmp_path / "run"
    told = {"WORKDIR": str(workdir), "TEXT": last, "SETTINGS": json.dumps(tiny_run)}
    ended = subprocess.run(
        [sys.executable, "-c", LOSES_ITS_CHECKPOINTS],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **told},
        capture_output=True,
        text=True,
        # Threads of the failed save wait ten minutes for each other; the run must not.
        timeout=180,
    )
    assert ended.returncode == 1, ended.stderr
    # TensorStore's threads may print their own traces before it.
    assert re.search(rf"error: a checkpoint in .*{workdir.name}/checkpoints cannot be written: \w", ended.stderr)
    assert not (workdir / "adapter.safetensors").exists()


def test_a_workdir_of_another_run_is_refused(settings: dict, tmp_path: Path):
    run({**settings, "steps": 2}, tmp_path / "run")
    before = (tmp_path / "run" / "adapter.safetensors").read_bytes()
    settings["optim"]["lr"] = 0.02
    with pytest.raises(InputError, match=r"optim\.lr"):
        run(settings, tmp_path / "run")
    assert (tmp_path / "run" / "adapter.safetensors").read_bytes() == before


def test_a_run_does_not_go_on_with_other_inputs(settings: dict, tmp_path: Path):
    workdir = tmp_path / "run"
    run({**settings, "steps": 4, "checkpoint": {"every": 2}}, workdir)
    files = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    data, model = Path(settings["data"]["path"]), Path(settings["base"]["path"]) / "model.safetensors"
    for path, changed, name in (
        (data, data.read_bytes().replace(b"number 3", b"number 33"), "training data"),
        (model, model.read_bytes()[:-1] + b"\x01", "base"),
    ):
        before = path.read_bytes()
        assert changed != before
        path.write_bytes(changed)
        with pytest.raises(InputError, match=rf"run holds a run that began with another {name}: continue it with the"):
            run({**settings, "steps": 6, "checkpoint": {"every": 2}}, workdir)
        path.write_bytes(before)
    after = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    assert {path for path in files if files[path] != after.get(path)} <= {workdir / "config.json"}
    _, text = run({**settings, "steps": 6, "checkpoint": {"every": 2}}, workdir)
    assert "resuming after step 4 of 6" in text


def test_a_run_does_not_go_on_with_a_base_that_is_held_otherwise(settings: dict, tmp_path: Path):
    workdir = tmp_path / "run"
    run({**settings, "steps": 2, "checkpoint": {"every": 2}}, workdir)
    quantized = {**settings, "base": {**settings["base"], "quantization": "int4"}}
    save_config(parse_config(quantized), workdir)
    with pytest.raises(InputError, match=r"began with another form of the base: continue it with the"):
        run({**quantized, "steps": 4}, workdir)
    save_config(parse_config({**settings, "steps": 2}), workdir)
    # Runs of earlier releases recorded the fingerprint alone.
    noted = json.loads((workdir / "inputs.json").read_text())
    assert noted.pop("form of the base") == "float32"
    (workdir / "inputs.json").write_text(json.dumps(noted))
    assert "resuming after step 2 of 4" in run({**settings, "steps": 4}, workdir)[1]


def test_a_second_run_in_a_workdir_is_refused_while_the_first_goes_on(settings: dict, tmp_path: Path):
    workdir = tmp_path / "run"
    run({**settings, "steps": 2}, workdir)
    metrics = (workdir / "metrics.jsonl").read_bytes()
    with Workdir(workdir), pytest.raises(InputError, match=r"run is in use by another run, which has not ended yet"):
        run({**settings, "steps": 4}, workdir)
    assert (workdir / "metrics.jsonl").read_bytes() == metrics
    assert "resuming after step 2 of 4" in run({**settings, "steps": 4}, workdir)[1]

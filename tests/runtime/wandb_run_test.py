"""Weights & Biases, by its own library in offline mode: one run over several processes, and sentences without it."""

import builtins
import json
import os
import subprocess
import sys
from pathlib import Path

import places
import pytest

from aligner_jax.errors import InputError
from aligner_jax.runtime import wandb_run
from aligner_jax.runtime.wandb_run import WandbRun, import_wandb

# The library starts a server and threads, so it has a process of its own.
TWO_PARTS = r"""
import sys
from pathlib import Path
from aligner_jax.runtime.metrics import MetricsWriter
for resume_step, steps in ((0, (1, 2)), (2, (3, 4))):
    with MetricsWriter(sys.argv[1], resume_step=resume_step, config={"optim": {"lr": 0.5}}, wandb="proj") as writer:
        for step in steps:
            writer.write(step, loss=step / 4)
"""


def records(path: Path) -> list:
    """Returns the records of a .wandb file, which is a log in LevelDB's format."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, found, place = path.read_bytes(), [], 7
    assert len(content) < 32_768, "a file of one block"
    while place + 7 <= len(content):
        length = int.from_bytes(content[place + 4 : place + 6], "little")
        found.append(Record.FromString(content[place + 7 : place + 7 + length]))
        place += 7 + length
    return found


def test_a_run_that_resumes_goes_on_in_the_same_run(tmp_path):
    environment = {**os.environ, "WANDB_MODE": "offline", "PYTHONPATH": str(places.ROOT), "HOME": str(tmp_path)}
    workdir = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-c", TWO_PARTS, str(workdir)], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    recorded = json.loads((workdir / "wandb.json").read_text())
    parts = sorted((workdir / "wandb").glob(f"offline-run-*-{recorded['id']}/run-{recorded['id']}.wandb"))
    assert len(parts) == len(list((workdir / "wandb").glob("offline-run-*"))) == 2
    values, runs = {}, []
    for record in (record for part in parts for record in records(part)):
        runs += [record.run] if record.HasField("run") else []
        if record.HasField("history"):
            items = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            values[items["_step"]] = items["loss"]
    assert values == {1: 0.25, 2: 0.5, 3: 0.75, 4: 1.0}
    assert {(run.project, run.display_name) for run in runs} == {("proj", "run")}
    assert any('"lr"' in update.value_json for run in runs for update in run.config.update)


class _Library:
    """The part of the library that `WandbRun` calls."""

    class Error(Exception):
        pass

    class Settings:
        def __init__(self, **_) -> None:
            pass

    def __init__(self, step: int = 0, error: str | None = None) -> None:
        self.step, self._error = step, error
        self.logged, self.ended, self.ids = [], [], []

    def init(self, *, id: str, **_):
        self.ids.append(id)
        if self._error:
            raise self.Error(self._error)
        return self

    def log(self, metrics: dict, step: int) -> None:
        self.logged.append((step, metrics))

    def finish(self, exit_code: int) -> None:
        self.ended.append(exit_code)


def begin(workdir: Path, library: _Library, monkeypatch, *, resume_step: int = 0, project: str = "p") -> WandbRun:
    monkeypatch.setattr(wandb_run, "import_wandb", lambda: library)
    workdir.mkdir(exist_ok=True)
    return WandbRun(project, workdir, resume_step=resume_step, config={})


def test_steps_that_are_there_already_are_not_sent_again(tmp_path, monkeypatch):
    library = _Library(step=3)
    run = begin(tmp_path, library, monkeypatch, resume_step=1)
    for step in (2, 3, 4):
        run.write(step, {"loss": 1.0})
    run.close(failed=True)
    assert [step for step, _ in library.logged] == [3, 4]
    assert library.ended == [1]


def test_a_run_that_begins_anew_or_in_another_project_is_another_run(tmp_path, monkeypatch):
    library = _Library()
    for project, resume_step in (("p", 0), ("p", 5), ("q", 5), ("q", 0)):
        begin(tmp_path, library, monkeypatch, resume_step=resume_step, project=project)
    first, second, third, fourth = library.ids
    assert first == second
    assert len({second, third, fourth}) == 3


def test_a_refusal_is_one_sentence_with_the_remedy(tmp_path, monkeypatch):
    library = _Library(error="no API key")
    with pytest.raises(InputError, match=r"\(no API key\); log in with `wandb login`, or set WANDB_MODE=offline"):
        begin(tmp_path, library, monkeypatch)


def test_without_the_library_the_pip_line_is_named(monkeypatch):
    real = builtins.__import__

    def without(name, *arguments):
        if name == "wandb":
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"pip install 'aligner_jax\[wandb\]'"):
        import_wandb()

"""Training in two processes on loopback: stopped, damaged, killed, restarted; it ends like an undisturbed run."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import places
import pytest
import tiny_runs
from killed_runs import logged
from safetensors.numpy import load_file

from scripts.lib.tiny_llama import write_tiny_llama

STEPS, EVERY, STALL = 60, 5, 10
# Programs of two processes are compiled anew in each run of the tests if the cache does not hold them.
ENVIRONMENT = {**os.environ, "PYTHONPATH": places.PYTHONPATH}
CONFIG = """
from ml_collections import ConfigDict


def get_config():
    return ConfigDict({config!r})
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, data of both kinds, and a config for each kind."""
    folder = tmp_path_factory.mktemp("processes")
    write_tiny_llama(folder / "model")
    for kind, rows in (("sft", tiny_runs.sft_rows(44)), ("dpo", tiny_runs.pair_rows(44))):
        data = tiny_runs.write_rows(folder / f"{kind}.jsonl", rows)
        settings = tiny_runs.settings_of(folder / "model", data)
        settings["data"] |= {"heldout_rows": 4, "batch_size": 4}
        settings |= {
            "steps": STEPS, "eval_every": 20, "checkpoint": {"every": EVERY}, "stall": {"seconds": STALL},
            "report": {"form": "json_answer" if kind == "sft" else None, "max_new_tokens": 10},
        }  # fmt: skip
        config = tiny_runs.on_pairs(settings, data) if kind == "dpo" else settings
        (folder / f"{kind}.py").write_text(CONFIG.format(config=config))
    return folder


class Run:
    """Processes that train together."""

    def __init__(
        self,
        config: Path,
        workdir: Path,
        count: int,
        *overrides: str,
        last: tuple[str, ...] = (),
        cwd: Path | None = None,
    ) -> None:
        """Starts the processes. The last one has extra flags; each has its own folder under `cwd`, if one is given."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        self.workdir, self.processes = workdir, []
        for number in range(count):
            joined = {
                "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": str(count),
                "JAX_PROCESS_ID": str(number),
            }  # fmt: skip
            command = [sys.executable, "-m", "aligner_jax.train", f"--config={config}", f"--workdir={workdir}"]
            self.processes.append(
                subprocess.Popen(
                    [*command, *overrides, *(last if number == count - 1 else ())],
                    env={**ENVIRONMENT, **(joined if count > 1 else {})}, cwd=cwd and cwd / f"host{number}",
                    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                )
            )  # fmt: skip

    def send(self, number: int, which: signal.Signals, lines: int) -> None:
        """Sends a signal to one process, shortly after `lines` lines of metrics are there."""
        reached = logged(lines)
        while not reached(self.workdir):
            assert all(process.poll() is None for process in self.processes), self.end()
            time.sleep(0.001)
        time.sleep(random.random() * 0.05)
        if which != signal.SIGTERM:
            self.processes[number].send_signal(which)
            return
        # JAX's service looks for SIGTERM once a second and then asks all processes. The others are held back till then,
        # since the remaining steps may take less.
        others = [process for process in self.processes if process is not self.processes[number]]
        for pulse in range(10):
            for process in others:
                process.send_signal(signal.SIGSTOP)
            if pulse == 0:
                self.processes[number].send_signal(which)
            time.sleep(0.3)
            for process in others:
                process.send_signal(signal.SIGCONT)
            time.sleep(0.005)

    def end(self) -> list[tuple[int, str, str]]:
        """Returns the exit status, stdout and stderr of each process."""
        found = []
        for process in self.processes:
            output, errors = process.communicate(timeout=300)
            # JAX's CPU backend prints its connections past Python.
            lines = [line for line in output.splitlines(keepends=True) if not line.startswith("[Gloo]")]
            found.append((process.returncode, "".join(lines), errors))
        return found

    def metrics(self) -> dict[int, dict[str, float]]:
        """Returns metrics by step; two lines of one step must be of different kinds."""
        found: dict[int, dict[str, float]] = {}
        for line in (self.workdir / "metrics.jsonl").read_text().splitlines():
            values = json.loads(line)
            assert {"time", "seconds"} <= values.keys()
            del values["time"], values["seconds"]
            step = found.setdefault(values.pop("step"), {})
            assert not step.keys() & values.keys()
            step |= values
        return found


def check_same(found: Run, wanted: Run, steps: int = STEPS) -> None:
    """Compares everything that a run leaves: the adapter within 1e-5, all losses, and the report."""
    of_found, of_wanted = (load_file(run.workdir / "adapter.safetensors") for run in (found, wanted))
    assert of_found.keys() == of_wanted.keys()
    for name, array in of_wanted.items():
        np.testing.assert_allclose(of_found[name], array, atol=1e-5, rtol=1e-5, err_msg=name)
    assert float(np.abs(of_found["gates_ln"]).max()) > 0.01
    metrics, expected = found.metrics(), wanted.metrics()
    assert list(metrics) == list(expected) == list(range(1, steps + 1))
    for step, values in expected.items():
        assert metrics[step].keys() == values.keys()
        for name in values.keys() - {"tokens_per_second", "step_seconds"}:
            np.testing.assert_allclose(
                metrics[step][name], values[name], atol=2e-5, rtol=2e-5, err_msg=f"{step} {name}"
            )
    reports = [json.loads((run.workdir / "report.json").read_text()) for run in (found, wanted)]
    for part in ("before", "after"):
        of_part = [report[part] for report in reports]
        assert of_part[0].keys() == of_part[1].keys()
        for name, value in of_part[1].items():
            if isinstance(value, float):
                np.testing.assert_allclose(of_part[0][name], value, atol=2e-5, rtol=2e-5, err_msg=f"{part} {name}")
            elif name == "answers":
                assert of_part[0][name] == value


@pytest.fixture(scope="module")
def alone(folder: Path) -> Run:
    run = Run(folder / "sft.py", folder / "alone", 1)
    ((status, _, errors),) = run.end()
    assert status == 0, errors
    return run


def test_two_processes_survive_what_one_does(folder: Path, alone: Run):
    config, workdir = folder / "sft.py", folder / "together"
    checkpoints = workdir / "checkpoints"

    # The second process is asked to stop, and both stop at the same step.
    run = Run(config, workdir, 2)
    run.send(1, signal.SIGTERM, random.randrange(12, 16))
    ends = run.end()
    last = max(run.metrics())
    assert 12 <= last < STEPS
    for status, _, errors in ends:
        assert status == 143, errors
        assert f"stopped by SIGTERM after step {last} of {STEPS}, which is saved" in errors
    assert (checkpoints / str(last)).is_dir()

    # Their last checkpoint is damaged, so both resume from the one before. Then one is killed, and the other ends.
    earlier = max(int(name) for name in os.listdir(checkpoints) if name != str(last))
    (checkpoints / str(last) / "run" / "metadata").write_text("{}")
    run = Run(config, workdir, 2)
    run.send(1, signal.SIGKILL, 26)
    (status, output, errors), (other, silent, _) = run.end()
    assert other == -signal.SIGKILL
    assert silent == "loading JAX…\n"
    assert f"resuming after step {earlier} of {STEPS}" in output
    assert errors.count("is damaged") == 1
    assert f"damaged_{last}" in os.listdir(checkpoints)
    assert status == 124, errors
    sentences = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(sentences) == 1
    # The connection of the process that is left breaks in the middle of a step, or is not in use.
    gone = "error: process 0 of 2 cannot go on, since another is gone (" in sentences[0]
    assert gone or f"was waited for longer than {STALL} s (config.stall.seconds), so the run ends" in sentences[0]
    assert sentences[0].endswith("; the same command goes on from the last checkpoint")

    # Both start again and run to the end.
    run = Run(config, workdir, 2)
    (status, output, errors), (other, silent, _) = run.end()
    assert (status, other, silent) == (0, 0, "loading JAX…\n"), errors
    assert "resuming after step 2" in output
    check_same(run, alone)
    assert not [name for name in os.listdir(checkpoints) if "tmp" in name]


def test_a_mistake_ends_both_with_one_sentence_each(folder: Path):
    began = time.monotonic()
    run = Run(folder / "sft.py", folder / "mistaken", 2, "--config.data.path=nowhere.jsonl")
    for status, output, errors in run.end():
        assert status == 1
        assert errors.startswith("error: ")
        assert errors.count("\n") == 1
        assert "nowhere.jsonl" in errors
        assert "Traceback" not in output
    assert time.monotonic() - began < 200
    assert not (folder / "mistaken").exists()


def test_data_that_one_process_lacks_ends_both_before_the_base_is_read(folder: Path, tmp_path: Path):
    for number in (0, 1):
        (tmp_path / f"host{number}").mkdir()
    shutil.copy(folder / "sft.jsonl", tmp_path / "host0" / "data.jsonl")
    run = Run(folder / "sft.py", tmp_path / "run", 2, "--config.data.path=data.jsonl", cwd=tmp_path)
    (first, output, told), (second, _, own) = run.end()
    assert (first, second) == (1, 1)
    assert own.startswith("error: there is no file data.jsonl")
    assert told == f"error: process 1 of 2 cannot go on: {own.removeprefix('error: ')}"
    assert "loading the base" not in output
    assert not (tmp_path / "run").exists()


def check_told_alike(run: Run, sentence: str) -> None:
    """Checks that each process ends with 1 and prints the same sentence."""
    for status, output, errors in run.end():
        assert status == 1, errors
        assert errors == f"error: {sentence}\n"
        assert "step 1/" not in output


def test_processes_that_are_started_differently_say_which_and_in_what(folder: Path):
    began = "process 1 of 2 was started with another configuration ("
    ended = "): give all processes the same command and config file"
    workdir = folder / "different"
    changes = {
        "adapter.init_from": ("'a.safetensors'", "None"), "data.batch_size": ("6", "4"), "mesh.tensor": ("2", "1"),
        "optim.lr": ("0.02", "0.01"), "seed": ("7", "0"), "steps": ("9", "60"),
    }  # fmt: skip
    flags = (f"--config.{name}={new}".replace("'", "") for name, (new, _) in changes.items())
    fields = "; ".join(f"{name} is {new} there and {old} on process 0" for name, (new, old) in changes.items())
    check_told_alike(Run(folder / "sft.py", workdir, 2, last=tuple(flags)), f"{began}{fields}{ended}")
    assert not workdir.exists()


# tests/tasks/input_digests_test.py has the data of both objectives. Bases are compared before the objective is known.
@pytest.mark.parametrize(("objective", "kind"), [("sft", "base"), ("sft", "training data"), ("dpo", "held-out data")])
def test_processes_with_files_of_their_own_say_which_differ(folder: Path, tmp_path: Path, kind: str, objective: str):
    for number in (0, 1):
        host = tmp_path / f"host{number}"
        shutil.copytree(folder / "model", host / "model")
        shutil.copy(folder / f"{objective}.jsonl", host / "data.jsonl")
    changed = tmp_path / "host1" / ("model/model.safetensors" if kind == "base" else "data.jsonl")
    content = changed.read_bytes()
    if kind == "base":
        changed.write_bytes(content[:-3000] + bytes(3000))
    else:
        row = b"It is 4." if kind == "training data" else b"very 43."
        changed.write_bytes(content.replace(row, b"It is 9."))
    assert changed.read_bytes() != content
    flags = ("--config.base.path=model", "--config.data.path=data.jsonl")
    run = Run(folder / f"{objective}.py", tmp_path / "run", 2, *flags, cwd=tmp_path)
    check_told_alike(run, f"process 1 of 2 has another {kind} than process 0: all processes need the same files")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_workdir_that_is_not_shared_is_noticed_at_the_start(folder: Path, tmp_path: Path):
    for number in (0, 1):
        (tmp_path / f"host{number}").mkdir()
    check_told_alike(
        Run(folder / "sft.py", Path("run"), 2, cwd=tmp_path),
        "process 1 of 2 does not see in run what process 0 writes there: give a --workdir on a disk that all processes "
        "share",
    )
    assert os.listdir(tmp_path / "host0") == os.listdir(tmp_path / "host1") == []


def test_one_process_goes_on_for_two(folder: Path, alone: Run):
    first = Run(folder / "sft.py", folder / "fewer", 2)
    first.send(0, signal.SIGTERM, 10)
    assert [status for status, _, _ in first.end()] == [143, 143]
    run = Run(folder / "sft.py", folder / "fewer", 1)
    ((status, output, errors),) = run.end()
    assert status == 0, errors
    assert "resuming after step 1" in output
    check_same(run, alone)


def on_pairs(folder: Path, count: int, cached: bool) -> Run:
    return Run(
        folder / "dpo.py", folder / f"dpo_{cached}_{count}", count, "--config.steps=20",
        f"--config.objective.cache_reference={cached}",
    )  # fmt: skip


def check_ended(run: Run) -> None:
    for status, _, errors in run.end():
        assert status == 0, errors


def test_processes_learn_from_preferences_alike_with_and_without_a_cached_reference(folder: Path):
    alone, cached = on_pairs(folder, 1, True), on_pairs(folder, 2, True)
    check_ended(alone)
    check_ended(cached)
    # It is compared with a cached reference too, so that one process runs once.
    computed = on_pairs(folder, 2, False)
    check_ended(computed)
    for run in (cached, computed):
        check_same(run, alone, steps=20)

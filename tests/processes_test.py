"""Two processes on loopback: asked to stop, damaged, killed, and gone on with by one, as if nothing had been."""

import os
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from joined_process import LENGTH, ROWS, documents, step, train

from aligner_jax.data.pipeline import train_batches

STEPS = 30


class Processes:
    """Those of one run; each is read up to its end."""

    def __init__(self, workdir: Path, count: int) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        script = str(Path(__file__).with_name("joined_process.py"))
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        self.all = [
            subprocess.Popen(
                [sys.executable, script, str(workdir), str(port), str(number), str(count), str(STEPS)],
                env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for number in range(count)
        ]  # fmt: skip
        self.lines: list[list[str]] = [[] for _ in self.all]

    def read_until(self, number: int, step: int) -> None:
        for line in self.all[number].stdout:
            self.lines[number].append(line)
            if line.startswith(f"{step} "):
                return
        pytest.fail(f"process {number} ended early: {self.all[number].communicate()}")

    def end(self) -> list[tuple[int, str]]:
        """Exit statuses and what was said on stderr."""
        found = []
        for process, lines in zip(self.all, self.lines, strict=True):
            output, errors = process.communicate(timeout=120)
            lines += output.splitlines()
            found.append((process.returncode, errors))
        return found

    def steps(self, number: int) -> dict[int, float]:
        return steps_of(self.lines[number])

    def first(self, number: int) -> int:
        return next(int(line.split()[1]) for line in self.lines[number] if line.startswith("from "))


def steps_of(lines: list[str]) -> dict[int, float]:
    """The state after each step, as a process printed it."""
    pairs = [line.split() for line in lines if line[:1].isdigit()]
    return {int(step): float(total) for step, total in pairs}


def totals() -> dict[int, float]:
    """The state after each step of one process that nothing happens to."""
    batches = train_batches(documents(), batch_size=ROWS, sequence_length=LENGTH, seed=0)
    state, found = {"total": jnp.float32(0), "step": jnp.int32(0)}, {}
    for number in range(1, STEPS + 1):
        state = step(state, {"tokens_bt": next(batches)["tokens_bt"]})
        found[number] = float(state["total"])
    return found


def test_two_processes_survive_what_one_does(tmp_path: Path, capsys: pytest.CaptureFixture):
    wanted, checkpoints = totals(), tmp_path / "checkpoints"

    # The second is asked to stop, and both do, at the same step.
    stopped = Processes(tmp_path, 2)
    stopped.read_until(1, random.randrange(6, 10))
    stopped.all[1].send_signal(signal.SIGTERM)
    ends = stopped.end()
    last = max(stopped.steps(0))
    assert last < STEPS
    for status, errors in ends:
        assert status == 143, errors
        assert f"stopped by SIGTERM after step {last} of {STEPS}, which is saved" in errors
    assert max(stopped.steps(1)) == last
    assert (checkpoints / str(last)).is_dir()

    # What they saved is damaged: both go on from the one before. Then one of them is killed, and the other ends.
    earlier = max(int(name) for name in os.listdir(checkpoints) if name != str(last))
    (checkpoints / str(last) / "run" / "metadata").write_text("{}")
    killed = Processes(tmp_path, 2)
    killed.read_until(0, earlier + 5)
    killed.all[1].send_signal(signal.SIGKILL)
    (status, errors), _ = killed.end()
    assert killed.first(0) == killed.first(1) == earlier
    assert errors.count("is damaged") == 1
    assert status == 124, errors
    assert "was waited for longer than 4 s (config.stall.seconds), so the run ends" in errors

    # One process, this one, goes on for both.
    capsys.readouterr()
    train(tmp_path, 1, STEPS)
    lines = capsys.readouterr().out.splitlines()
    assert int(lines[0].removeprefix("from ")) >= earlier
    assert int(lines[-1].split()[0]) == STEPS
    for found in (stopped.steps(0), stopped.steps(1), killed.steps(0), killed.steps(1), steps_of(lines)):
        for each, total in found.items():
            np.testing.assert_allclose(total, wanted[each], rtol=1e-5, atol=1e-5)
    assert not [name for name in os.listdir(checkpoints) if "tmp" in name]
    assert f"damaged_{last}" in os.listdir(checkpoints)

"""Runs that wait too long report the reason, and nothing is lost."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console
from waits import wait_until

from aligner_jax.runtime import watchdog as watchdog_module
from aligner_jax.runtime.config import StallConfig, parse_config
from aligner_jax.runtime.watchdog import Watchdog
from aligner_jax.train import train

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Records the exits that would have ended the process."""
    found = []
    monkeypatch.setattr(watchdog_module, "at_once", lambda *ended: found.append(ended))
    return found


def test_what_is_waited_for_too_long_is_named(ends):
    with Watchdog(StallConfig(seconds=0.1)) as watchdog:
        watchdog.waiting_for("the batch of step 1")
        watchdog.waiting_for("step 1")
        wait_until(lambda: bool(ends))
    assert ends[0] == (
        "error: step 1 was waited for longer than 0.1 s (config.stall.seconds), so the run ends; the same command "
        "goes on from the last checkpoint",
        124,
    )


def test_what_goes_on_is_left_alone_and_compiling_has_its_own_time(ends):
    with Watchdog(StallConfig(seconds=0.5, compile_seconds=30)) as watchdog:
        watchdog.waiting_for("step 1", compiles=True)
        time.sleep(1)
        for number in range(2, 12):
            watchdog.waiting_for(f"step {number}")
            time.sleep(0.1)
    assert ends == []


def test_switched_off_there_is_no_thread(ends):
    before = threading.active_count()
    for off in (0, None):
        with Watchdog(StallConfig(seconds=off, compile_seconds=off)) as watchdog:
            watchdog.waiting_for("step 1")
            assert threading.active_count() == before
    with Watchdog(StallConfig(seconds=0.05, compile_seconds=0)) as watchdog:
        watchdog.waiting_for("step 1", compiles=True)
        time.sleep(0.3)
    assert ends == []


PAUSED = """
import sys, time
from aligner_jax.runtime.config import StallConfig
from aligner_jax.runtime.watchdog import Watchdog
with Watchdog(StallConfig(seconds=2)) as watchdog:
    watchdog.waiting_for("input")
    print("waiting", flush=True)
    sys.stdin.readline()
print("done", flush=True)
"""


def test_a_process_that_is_stopped_itself_is_not_late():
    process = subprocess.Popen(
        [sys.executable, "-c", PAUSED], env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(2.5)
    process.send_signal(signal.SIGCONT)
    assert process.communicate("\n") == ("done\n", None)
    assert process.returncode == 0


def test_in_a_users_process_a_wait_is_told_once_and_nothing_ends(ends, capsys):
    told: list[str] = []
    with Watchdog(StallConfig(seconds=0.1), ends_process=False) as watchdog:
        for step in (1, 2):
            watchdog.waiting_for(f"step {step}")
            told.append("")

            def is_told(step: int = step) -> bool:
                told[-1] += capsys.readouterr().err
                return f"step {step}" in told[-1]

            wait_until(is_told)
        time.sleep(0.3)
    told.append(capsys.readouterr().err)
    assert "".join(told) == "".join(
        f"step {step} was waited for longer than 0.1 s (config.stall.seconds); interrupt the run, and the same call "
        "goes on from the last checkpoint\n"
        for step in (1, 2)
    )
    assert ends == []


STALLED_INPUT = """
import dataclasses, json, sys, time
from pathlib import Path
from rich.console import Console
from aligner_jax.tasks import training
from aligner_jax.runtime.config import parse_config
from aligner_jax.tasks.objectives import OBJECTIVES
from aligner_jax.tasks.sft import SFT

class Stalling:
    def __init__(self, feed):
        self._feed, self._left = feed, 5
    def next(self, state):
        self._left -= 1
        if self._left < 0:
            time.sleep(600)
        return self._feed.next(state)
    def __getattr__(self, name):
        return getattr(self._feed, name)

def task(beginning):
    task = SFT.task(beginning)
    return dataclasses.replace(task, feed=Stalling(task.feed))
OBJECTIVES["sft"] = dataclasses.replace(SFT, task=task)
training.train(parse_config(json.loads(sys.argv[1])), Path(sys.argv[2]), Console(width=100, highlight=False))
"""


def test_a_stalled_input_ends_the_run_and_the_next_goes_on(tiny_run: dict, tmp_path: Path):
    tiny_run["stall"] = {"seconds": 2.0, "compile_seconds": 300.0}
    command = [sys.executable, "-c", STALLED_INPUT, json.dumps(tiny_run), str(tmp_path / "run")]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 124, done.stderr
    assert done.stderr == (
        "error: the batch of step 6 was waited for longer than 2 s (config.stall.seconds), so the run ends; the same "
        "command goes on from the last checkpoint\n"
    )
    assert "step 4/8" in done.stdout
    screen = io.StringIO()
    train(parse_config(tiny_run), tmp_path / "run", Console(width=100, file=screen))
    assert "resuming after step 3 of 8" in screen.getvalue()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 9))

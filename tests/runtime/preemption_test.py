"""Runs that are asked to stop finish the step, save, and resume to the same result."""

import contextlib
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

from aligner_jax.objectives import reference
from aligner_jax.runtime.config import parse_config
from aligner_jax.runtime.exit import Stopped
from aligner_jax.runtime.preemption import StopRequests
from aligner_jax.train import train

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.mark.parametrize(
    ("number", "name", "status"), [(signal.SIGTERM, "SIGTERM", 143), (signal.SIGINT, "SIGINT", 130)]
)
def test_a_request_is_heard_and_handlers_are_put_back(number, name, status, capfd):
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    threads = threading.active_count()
    with StopRequests(9) as requests:
        requests.begin_steps()
        assert requests.stopped_at(1) is None
        os.kill(os.getpid(), number)
        wait_until(lambda: requests.stopped_at(2))
        stopped = requests.stopped_at(2)
        with pytest.raises(Stopped):
            raise stopped
        assert str(stopped) == f"stopped by {name} after step 2 of 9, which is saved; the same command goes on there"
        assert stopped.status == status
        requests._received = None
    assert (
        capfd.readouterr().err
        == f"{name}: the run stops after this step, which will be saved; another ends it at once\n"
    )
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == before
    assert threading.active_count() == threads


@pytest.mark.parametrize("owns_process", [True, False])
def test_signals_while_the_handlers_are_put_back_change_nothing(owns_process, monkeypatch):
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    set_handler = signal.signal

    def interrupted(number, handler):
        # A second signal would end a process that the run owns; one suffices to see that none is raised.
        for _ in range(1 if owns_process else 2):
            requests._handle(signal.SIGINT, None)
        return set_handler(number, handler)

    with StopRequests(9, owns_process=owns_process) as requests:
        monkeypatch.setattr(signal, "signal", interrupted)
    monkeypatch.undo()
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_a_request_after_the_last_step_is_not_forgotten():
    def run():
        with StopRequests(9) as requests:
            requests.begin_steps()
            assert requests.stopped_at(9) is None
            os.kill(os.getpid(), signal.SIGTERM)
            wait_until(lambda: requests._received)
            requests.end_steps()

    with pytest.raises(Stopped, match="after step 9 of 9"):
        run()


def test_outside_the_main_thread_signals_are_left_alone():
    found = []

    def run():
        with StopRequests(9) as requests:
            found.extend([requests.stopped_at(1), signal.getsignal(signal.SIGTERM)])

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [None, signal.getsignal(signal.SIGTERM)]


BUSY = """
import ctypes
from aligner_jax.runtime.preemption import StopRequests
libc = ctypes.CDLL(None)
with StopRequests(9) as requests:
    requests.begin_steps()
    print("busy", flush=True)
    # A call that does not come back to Python for a signal's sake, as a compilation.
    while True:
        libc.usleep(900_000)
"""


def test_a_second_signal_ends_a_busy_process_at_once():
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "busy\n"
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline().startswith("SIGINT: the run stops after this step")
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.communicate() == (
        "",
        "ended by a second SIGTERM; the same command goes on from the last checkpoint\n",
    )
    assert process.returncode == 143


class _Screen(io.StringIO):
    """Sends the process a signal when a text is printed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def write(self, text: str) -> int:
        if self.text in text:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().write(text)


def test_a_stopped_run_goes_on_with_the_same_bits_and_logs_each_step_once(tiny_run: dict, tmp_path: Path):
    def run(workdir: str, screen: io.StringIO):
        train(parse_config(tiny_run), tmp_path / workdir, Console(width=100, file=screen))

    tiny_run |= {"steps": 12, "checkpoint": {"every": 50}}
    run("whole", io.StringIO())
    with pytest.raises(Stopped) as stopped:
        # Printed while step 6 runs.
        run("stopped", _Screen("step 5/12"))
    number = int(str(stopped.value).split("after step ")[1].split()[0])
    assert 6 <= number <= 8
    assert os.listdir(tmp_path / "stopped" / "checkpoints") == [str(number)]
    assert not (tmp_path / "stopped" / "adapter.safetensors").exists()
    screen = io.StringIO()
    run("stopped", screen)
    assert f"resuming after step {number} of 12" in screen.getvalue()
    a, b = (tmp_path / name / "adapter.safetensors" for name in ("whole", "stopped"))
    assert a.read_bytes() == b.read_bytes()
    whole, pieces = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "stopped")
    )
    for line in whole + pieces:
        for name in ("tokens_per_second", "step_seconds", "time", "seconds"):
            del line[name]
    assert pieces == whole


def _stopped_when(text: str, settings: dict, workdir: Path) -> str:
    with pytest.raises(Stopped) as stopped:
        train(parse_config(settings), workdir, Console(width=100, file=_Screen(text)))
    assert stopped.value.status == 143
    return str(stopped.value)


BEGINS = "stopped by SIGTERM before its first step; the same command begins again"


@pytest.mark.parametrize("text", ["base: ", "adapter: ", "data: ", "training: "])
def test_before_the_first_step_a_run_stops_at_once(tiny_run: dict, tmp_path: Path, text: str):
    assert _stopped_when(text, tiny_run, tmp_path / "run") == BEGINS
    assert not (tmp_path / "run").exists()


def test_after_the_last_step_what_is_missing_is_made_by_the_same_command(tiny_run: dict, tmp_path: Path):
    sentence = _stopped_when("saved: ", tiny_run, tmp_path / "run")
    assert sentence == "stopped by SIGTERM after step 8 of 8, which is saved; the same command goes on there"
    train(parse_config(tiny_run), tmp_path / "run", Console(quiet=True))
    assert (tmp_path / "run" / "adapter.safetensors").exists()


def test_a_reference_pass_stops_between_two_batches(tiny_run: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows = [{"prompt": f"Name number {i}.", "chosen": f"It is {i}.", "rejected": "No."} for i in range(12)]
    Path(tiny_run["data"]["path"]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}
    tiny_run["data"] |= {"format": "fields", "fields": fields}
    tiny_run["objective"] = {"name": "dpo"}
    taken = []
    real = reference.token_log_probs

    def counted(*arguments, **options):
        taken.append(1)
        if len(taken) == 2:
            # A library's callback could lose the exception; the check between two batches still sees the signal.
            with contextlib.suppress(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(1)
        return real(*arguments, **options)

    monkeypatch.setattr(reference, "token_log_probs", counted)
    with pytest.raises(Stopped, match=f"^{BEGINS}$"):
        train(parse_config(tiny_run), tmp_path / "run", Console(quiet=True))
    assert len(taken) == 2
    assert not list((tmp_path / "run").glob("*.npz"))
    train(parse_config(tiny_run), tmp_path / "run", Console(quiet=True))
    assert (tmp_path / "run" / "adapter.safetensors").exists()

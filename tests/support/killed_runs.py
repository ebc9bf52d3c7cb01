"""Kills a training run at given moments and restarts it, and compares it with an undisturbed run."""

import itertools
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file


def logged(lines: int) -> Callable[[Path], bool]:
    """Returns the moment at which this many lines of metrics are in the workdir."""

    def reached(workdir: Path) -> bool:
        metrics = workdir / "metrics.jsonl"
        return metrics.exists() and metrics.read_bytes().count(b"\n") >= lines

    return reached


def check_killed_run(
    config: Path,
    folder: Path,
    moments: Sequence[Callable[[Path], bool]],
    chance: random.Random,
    what: str,
    signals: Sequence[int] = (signal.SIGKILL,),
) -> tuple[Path, Path]:
    """Kills the run shortly after each moment; asserts that it resumes and gives a byte-identical adapter.

    Args:
      moments: functions that return True once a workdir has reached the moment.
      what: description for the assertions' messages, to repeat a failure.
      signals: signals to send at the moments, repeated in order. After SIGTERM the run must stop in order.

    Returns:
      The workdirs of the undisturbed run and of the killed run.
    """

    def start(workdir: Path) -> subprocess.Popen:
        """Returns the run once it has read its base; before that, a signal ends Python in its default way."""
        command = [sys.executable, "-m", "aligner_jax.train", f"--config={config}", f"--workdir={workdir}"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        said = list(itertools.takewhile(lambda line: not line.startswith("base: "), process.stdout or ()))
        assert process.poll() is None, "".join(said)
        return process

    whole, killed, kills = folder / "whole", folder / "killed", 0
    beside = start(whole)
    for reached, number in zip(moments, itertools.cycle(signals), strict=False):
        process = start(killed)
        while process.poll() is None and not reached(killed):
            time.sleep(0.001)
        time.sleep(chance.random() * 0.02)
        kills += process.poll() is None
        process.send_signal(number)
        output, _ = process.communicate()
        if number == signal.SIGTERM:
            assert process.returncode == 143, f"{what}: {output}"
            assert "stopped by SIGTERM" in output, what
    last = start(killed)
    for process in (last, beside):
        output, _ = process.communicate()
        assert process.returncode == 0, output
    assert kills == len(moments), f"{what}: the run ended before it could be killed"
    a, b = (workdir / "adapter.safetensors" for workdir in (whole, killed))
    assert a.read_bytes() == b.read_bytes(), what
    assert float(np.abs(load_file(a)["gates_ln"]).max()) > 0
    lines = [json.loads(line) for line in (killed / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == sorted(set(steps)), f"{what}: a step is logged twice"
    assert not list((killed / "checkpoints").glob("*tmp*"))
    return whole, killed

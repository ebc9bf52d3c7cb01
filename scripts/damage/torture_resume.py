"""Kills training at random moments, damages its checkpoints, and checks that it resumes to the same result.

    python -m scripts.damage.torture_resume [--kills=100] [--damage=200] [--jobs=1] [--out=runs/torture] [--seed=0]

Kills: a process trains a tiny model and is repeatedly killed by SIGKILL or SIGTERM and restarted: while it starts,
between steps, during a save or as it ends. Every restart must resume, and the adapter must be byte-identical to that of
the reference run, which is never killed. A kill costs the start of a process, about 5 s of a core.

Damage: files of three checkpoints, or the checkpoints themselves, are changed, cut, emptied, swapped, renamed or
deleted. The restored state must be bit-identical to one of the saved states, and not older than the newest undamaged
one; otherwise the failure must be one sentence. Some cases damage copies of the reference run's checkpoints and restart
the run.

The same command resumes where it was stopped. Exit status 0 if all went well; otherwise 1 and one sentence, and the
folder of the case stays.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import json
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from aligner_jax.runtime import platform
from scripts.damage import torture_damage
from scripts.lib.tiny_llama import write_tiny_llama

ROOT = Path(__file__).resolve().parents[2]
STEPS, EVERY = 240, 4
KILLS_OF_A_RUN = 10
MOMENTS = ("starting", "between steps", "saving", "ending")
CONFIG = """
from ml_collections import ConfigDict


def get_config():
    return ConfigDict(
        {{
            "base": {{"path": "{model}", "dtype": "float32"}},
            "adapter": {{"num_tokens": 2, "start_layer": 1}},
            "data": {{"path": "{data}", "template": "chat", "sequence_length": 128, "batch_size": 2}},
            "optim": {{"lr": 0.01, "accumulate": 2}},
            "steps": {steps},
            "log_every": 1,
            "checkpoint": {{"every": {every}}},
        }}
    )
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--damage", type=int, default=200)
    parser.add_argument("--damaged-runs", type=int, default=5, help="of the damage, so much is done to a whole run")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    parser.add_argument("--out", type=Path, default=Path("runs/torture"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = options.out.resolve()
    platform.prepare()
    # Orbax and this project log each damage that they detect.
    logging.getLogger().setLevel(logging.ERROR)
    try:
        config = prepare(folder)
        kills = killed_runs(folder, config, options.kills, options.seed, options.jobs)
        number = max(options.damage - options.damaged_runs, 0)
        damage = torture_damage.damage_restores(folder, number, options.seed, folder / f"damage_{options.seed}.jsonl")
        damage += damaged_runs(folder, config, min(options.damaged_runs, options.damage), options.seed)
    except AssertionError as error:
        sys.exit(f"error: {error}")
    table("kill", collections.Counter(f"{kill['moment']}, {kill['signal']}" for kill in kills))
    table("kill cut a save short", collections.Counter(str(kill["in a save"]) for kill in kills))
    table("damage", collections.Counter(part for each in damage for part in each["damage"].split(" + ")))
    table("restored after damage", collections.Counter(each["outcome"] for each in damage))
    print(f"\n{len(kills)} kills and {len(damage)} damages, each survived")


def table(title: str, counts: collections.Counter[str]) -> None:
    """Prints counts, the largest first."""
    print(f"\n{title}")
    for name, count in counts.most_common():
        print(f"  {count:5}  {name}")


def prepare(folder: Path, steps: int = STEPS) -> Path:
    """Makes the model, data, config and reference run unless they exist; returns the config's path."""
    config = folder / "config.py"
    if not config.exists():
        shutil.rmtree(folder / "model", ignore_errors=True)
        write_tiny_llama(folder / "model")
        rows = [{"instruction": f"Name number {i}.", "output": f"It is {'very ' * (i % 4)}{i}."} for i in range(40)]
        (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        text = CONFIG.format(model=folder / "model", data=folder / "data.jsonl", steps=steps, every=EVERY)
        config.write_text(text)
    run = Run(config, folder / "whole")
    assert run.wait() == 0, f"the run left alone failed: {run.output}"
    return config


class Run:
    """A process of a training run, and its output so far."""

    def __init__(self, config: Path, workdir: Path) -> None:
        command = [sys.executable, "-m", "aligner_jax.train", f"--config={config}", f"--workdir={workdir}"]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
        self.workdir, self.output, self.began = workdir, "", time.time()
        self._process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.output += line

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def wait(self, seconds: float = 600) -> int:
        try:
            status = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise AssertionError(f"{self.workdir}: the process did not end in {seconds} s: {self.output}") from None
        self._reader.join()
        return status

    def wait_for(self, moment: str, chance: random.Random) -> None:
        """Waits until the moment, or until the process has ended."""
        if moment == "starting":
            self._sleep(chance.uniform(0, 4))
            return
        wanted = r"step \d+/" if moment != "ending" else r"step (\d+)/\1\b"
        while not self.ended and not re.search(wanted, self.output):
            time.sleep(0.001)
        if moment == "ending":
            self._sleep(chance.uniform(0, 0.3))
            return
        self._sleep(chance.uniform(0, 0.8))
        if moment == "saving":
            while not self.ended and not unfinished(self.workdir, self.began):
                time.sleep(0.0002)
            self._sleep(chance.uniform(0, 0.03))

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self.ended and time.monotonic() < end:
            time.sleep(0.0005)

    def kill(self, number: int, again: float | None) -> int:
        """Sends the signal, and perhaps again after `again` seconds; returns the exit status."""
        self._process.send_signal(number)
        if again is not None:
            self._sleep(again)
            self._process.send_signal(number)
        return self.wait()


def unfinished(workdir: Path, since: float = 0) -> bool:
    """Returns True if there is an unfinished checkpoint that was begun after this clock time."""
    for path in (workdir / "checkpoints").glob("*orbax-checkpoint-tmp*"):
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime >= since:
                return True
    return False


def killed_runs(folder: Path, config: Path, kills: int, seed: int, jobs: int) -> list[dict[str, str | bool]]:
    """Runs until this many kills are survived; each run is a line of the record, and recorded runs are not repeated."""
    record = folder / f"kills_{seed}.jsonl"
    done = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    found = [kill for run in done for kill in run["kills"]]
    number = max((run["number"] for run in done), default=-1) + 1
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        running: dict[concurrent.futures.Future, int] = {}
        while len(found) < kills or running:
            planned = len(found) + KILLS_OF_A_RUN * len(running)
            while planned < kills and len(running) < jobs:
                wanted = min(KILLS_OF_A_RUN, kills - planned)
                running[pool.submit(killed_run, folder, config, seed, number, wanted)] = number
                planned, number = planned + wanted, number + 1
            finished, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
            for each in finished:
                line = {"number": running.pop(each), "kills": each.result()}
                found += line["kills"]
                with record.open("a") as file:
                    file.write(json.dumps(line) + "\n")
                print(f"kills {len(found)}/{kills}", flush=True)
    return found


def killed_run(folder: Path, config: Path, seed: int, number: int, kills: int) -> list[dict[str, str | bool]]:
    """Runs training that is killed at most `kills` times and then ends.

    Raises:
      AssertionError: the run does not resume, or ends with another adapter.
    """
    chance, workdir = random.Random(f"{seed} {number}"), folder / f"killed_{seed}_{number}"
    shutil.rmtree(workdir, ignore_errors=True)
    found, what = [], f"run {number} of seed {seed}"
    for kill in range(kills):
        moment = "ending" if kill == kills - 1 else chance.choice(MOMENTS[:-1])
        name = chance.choice(("SIGKILL", "SIGKILL", "SIGTERM"))
        again = chance.uniform(0, 0.02) if name == "SIGTERM" and chance.random() < 0.3 else None
        run = Run(config, workdir)
        run.wait_for(moment, chance)
        ended = run.ended
        status = run.kill(signal.Signals[name], again)
        if ended and not found:
            raise AssertionError(f"{what} ended before it was killed, with status {status}: {run.output}")
        # After SIGTERM the run may have ended by itself.
        wanted = {"SIGKILL": (-9,), "SIGTERM": (143, -15, 0)}[name] + ((0,) if ended else ())
        assert status in wanted, f"{what}: status {status} after {name}, {moment}: {run.output}"
        assert "Traceback" not in run.output, f"{what}: {run.output}"
        if ended:
            break
        found.append({"moment": moment, "signal": name + (" twice" if again is not None else "")})
        found[-1]["in a save"] = unfinished(workdir, since=run.began)
    check_ended(Run(config, workdir), folder / "whole", what)
    shutil.rmtree(workdir)
    return found


def check_ended(run: Run, whole: Path, what: str) -> None:
    """Waits for a run to end as the reference run did.

    Raises:
      AssertionError: it ended otherwise.
    """
    status, workdir = run.wait(), run.workdir
    assert status == 0, f"{what} did not go on, but ended with status {status}: {run.output}"
    a, b = (folder / "adapter.safetensors" for folder in (whole, workdir))
    assert a.read_bytes() == b.read_bytes(), f"{what} gave another adapter: {b}"
    steps = [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1)), f"{what}: {workdir}/metrics.jsonl lacks a step or has one twice"
    assert not unfinished(workdir), f"{what} left a half-written checkpoint in {workdir}"


def damaged_runs(folder: Path, config: Path, number: int, seed: int) -> list[dict[str, str]]:
    """Damages the checkpoints of copies of the reference run, and restarts each copy.

    Raises:
      AssertionError: a run neither ended as the reference run did nor with one sentence.
    """
    found = []
    for case in range(number):
        chance, workdir = random.Random(f"{seed} run {case}"), folder / f"damaged_run_{seed}_{case}"
        shutil.rmtree(workdir, ignore_errors=True)
        shutil.copytree(folder / "whole", workdir)
        (workdir / "adapter.safetensors").unlink()
        done = " + ".join(torture_damage.damage(workdir / "checkpoints", chance)[0] for _ in range(2))
        run, what = Run(config, workdir), f"damaged run {case} of seed {seed} ({done})"
        if run.wait() == 1 and "Traceback" not in run.output:
            outcome = "one sentence, of a run"
        else:
            check_ended(run, folder / "whole", what)
            outcome = "the same adapter, of a run"
        shutil.rmtree(workdir)
        found.append({"damage": done, "outcome": outcome})
        print(f"damaged runs {case + 1}/{number}", flush=True)
    return found


if __name__ == "__main__":
    main()

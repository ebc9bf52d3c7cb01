"""Worker processes that answer one line of JSON with another; part of scripts.bench.train, generate and gpu.

Only one worker is at work while something is timed: the others wait for their next line. Standard library only, for
both interpreters.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PEER_VARIABLE = "PEER_PYTHON"
HOW_TO_MAKE_A_PEER = (
    f"error: {PEER_VARIABLE} does not name the interpreter of the environment to compare with. Make one with\n"
    "  python3.11 -m venv ENV && ENV/bin/pip install torch==2.13.0 peft transformers\n"
    f"and run the same command with {PEER_VARIABLE}=ENV/bin/python before it."
)

_NOT_INHERITED = ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME")


def peer_python() -> str:
    """Returns the interpreter of the peer's environment. Ends the program if there is none and says how to make it."""
    python = os.environ.get(PEER_VARIABLE, "")
    if not os.access(python, os.X_OK) or Path(python).is_dir():
        sys.exit(HOW_TO_MAKE_A_PEER)
    return python


class Worker:
    """A child process of an interpreter, which runs a script or `-m` and a module and serves its commands."""

    def __init__(self, python: str, *script: str, **variables: str):
        self.began = time.perf_counter()
        self._script = script[-1]
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [python, *script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            env=_environment() | variables,
        )

    @classmethod
    def ours(cls, cache: Path) -> "Worker":
        """Starts a worker of this package on the CPU; compiled programs are cached under `cache` only."""
        return cls(sys.executable, "-m", "scripts.bench.ours", XDG_CACHE_HOME=str(cache), JAX_PLATFORMS="cpu")

    @classmethod
    def peer(cls) -> "Worker":
        """Starts a worker of torch, transformers and PEFT, without access to any hub."""
        offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
        return cls(peer_python(), "-m", "scripts.bench.peers.training", **offline)

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Returns the worker's answer. Ends the program with the worker's last output if it fails or dies."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"command": command, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        reply = json.loads(line) if line else {"error": self._last_words()}
        if "error" in reply:
            sys.exit(f"error: {self._script} failed at {command!r}:\n{reply['error'].rstrip()}")
        return reply

    def turn(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Returns the answer of `ask`, and `others`: the share of the cores that other processes used meanwhile.

        Threads that wait for each other lose much more than that share to a third process, and torch's more than
        XLA's. So turns beside other work are not comparable.
        """
        began, busy = time.perf_counter(), _busy_seconds()
        reply = self.ask(command, **arguments)
        busy, seconds = _busy_seconds() - busy, time.perf_counter() - began
        return {**reply, "others": max(0.0, busy - reply["cpu_seconds"]) / (seconds * cores())}

    def seconds_since_start(self) -> float:
        """Returns the wall time since the process was requested."""
        return time.perf_counter() - self.began

    def close(self) -> None:
        """Asks the worker to end, and kills it if it does not."""
        try:
            self._process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
        self._stderr.close()

    def _last_words(self) -> str:
        self._process.wait()
        self._stderr.seek(0)
        words = "".join(self._stderr.readlines()[-15:])
        return words or f"it ended with status {self._process.returncode} and said nothing"

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _environment() -> dict[str, str]:
    """Returns this process's variables, with the repository on the path and no cache of compiled programs."""
    kept = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**kept, "PYTHONPATH": path}


def serve(handlers: Mapping[str, Callable[..., Mapping[str, Any]]]) -> None:
    """Answers requests until stdin ends; this is the worker's side. All other output goes to stderr."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        began = time.process_time()
        try:
            reply = handlers[request.pop("command")](**request)
            reply = {**reply, "cpu_seconds": time.process_time() - began}
        except Exception:
            reply = {"error": traceback.format_exc()}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def peak_memory() -> dict[str, int]:
    """Returns this process's peak resident memory, in bytes."""
    # getrusage is the fallback only: its peak includes the parent's memory when it started this process.
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return {"bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    return {"bytes": next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))}


def cores() -> int:
    """Returns the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _busy_seconds() -> float:
    """Returns seconds that all cores worked since boot, for this system or, if it is virtual, for others."""
    try:
        user, nice, system, _, _, *interrupts_and_steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    except OSError:
        return 0.0
    return (user + nice + system + sum(interrupts_and_steal)) / os.sysconf("SC_CLK_TCK")

"""Processes in which the CPU counts as several devices."""

import os
import subprocess
from collections.abc import Sequence

import places

STUCK_SECONDS = 100
_ATTEMPTS = 4
_KINDS = ("warn_stuck", "terminate")
_STUCK = "Exiting to ensure a consistent program state"
"""A message of XLA, with which it ends a process whose devices have waited too long for each other."""


def environment(count: int) -> dict[str, str]:
    """Returns the variables that give a process this many CPU devices, to be added to its others."""
    timeouts = " ".join(f"--xla_cpu_collective_call_{kind}_timeout_seconds={STUCK_SECONDS}" for kind in _KINDS)
    return {"XLA_FLAGS": f"--xla_force_host_platform_device_count={count} {timeouts}"}


def run(command: Sequence[str], count: int, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a command with this many CPU devices and further variables; it is begun again if its devices got stuck.

    XLA's CPU backend begins collectives that do not depend on each other in any order. Rarely one device waits in one
    of them and the others in another, for ever, whatever the program and the number of threads.
    """
    for _ in range(_ATTEMPTS - 1):
        done = _run(command, count, variables)
        if done.returncode >= 0 or _STUCK not in done.stderr:
            return done
    return _run(command, count, variables)


def _run(command: Sequence[str], count: int, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    all_variables = {**os.environ, "PYTHONPATH": places.PYTHONPATH, **environment(count), **variables}
    return subprocess.run(command, env=all_variables, capture_output=True, text=True)

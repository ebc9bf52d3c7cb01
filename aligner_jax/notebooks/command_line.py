"""Runs a command line of this project beside a notebook, and shows what it prints."""

import os
import shlex
import subprocess
import sys

import jax

from aligner_jax.errors import InputError

COLUMNS = 110
"""Width of tables, which a notebook's page has room for."""


def command(line: str, *, show: bool = True) -> str:
    """Runs a command in a process of its own; prints its lines as they come, and returns them.

    A TPU belongs to one process, which is the notebook's; beside it, commands compute on the CPU.

    Args:
      line: what one would type in a terminal, without a shell's syntax but quotes; "python" is the kernel's.
      show: False prints nothing.

    Returns:
      What the command wrote to its standard output, and with `show` also its messages.

    Raises:
      InputError: the command failed; with the last line that it printed.
    """
    words = shlex.split(line)
    if words[0] == "python":
        words[0] = sys.executable
    environment = os.environ | {"COLUMNS": str(COLUMNS), "PYTHONUNBUFFERED": "1"}
    if jax.default_backend() == "tpu":
        environment["JAX_PLATFORMS"] = "cpu"
    if not show:
        ended = subprocess.run(words, capture_output=True, text=True, errors="replace", env=environment, check=False)
        if ended.returncode:
            raise InputError(f"{line} ended with status {ended.returncode}: {_last_line(ended.stderr)}")
        return ended.stdout
    lines = []
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=environment
    ) as process:
        try:
            for printed in process.stdout or ():
                lines.append(printed)
                print(printed, end="", flush=True)
            status = process.wait()
        except BaseException:
            process.terminate()
            raise
    if status:
        raise InputError(f"{line} ended with status {status}: {_last_line(''.join(lines))}")
    return "".join(lines)


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it printed nothing"])[-1]

"""Runs command lines of this project beside a notebook, and shows what they print."""

import contextlib
import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator

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
      The command's standard output, and with `show` also its messages.

    Raises:
      InputError: the command failed; with the last line that it printed.
    """
    words, environment = _words(line), _environment()
    if not show:
        ended = subprocess.run(words, capture_output=True, text=True, errors="replace", env=environment, check=False)
        if ended.returncode:
            raise InputError(f"{line} ended with status {ended.returncode}: {_last_line(ended.stderr)}")
        return ended.stdout
    lines = []
    with _started(words, environment) as process:
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


@contextlib.contextmanager
def running(line: str, until: str) -> Iterator[str]:
    """Runs a command, such as a server, as long as a `with` block; yields the text that it printed to be ready.

    Args:
      line: see `command`.
      until: regular expression of the text to wait for.

    Raises:
      InputError: the command ended without printing that; with the last line that it printed.
    """
    with _started(_words(line), _environment()) as process:
        try:
            assert process.stdout is not None
            printed, found = "", None
            while found is None:
                new = process.stdout.readline()
                if not new:
                    raise InputError(f"{line} ended with status {process.wait()}: {_last_line(printed)}")
                printed += new
                found = re.search(until, new)
            # A full pipe would stop the command.
            reader = threading.Thread(target=process.stdout.read, daemon=True)
            reader.start()
            yield found[0]
        finally:
            process.terminate()
            process.wait()
    reader.join()


def _words(line: str) -> list[str]:
    words = shlex.split(line)
    return [sys.executable if words[0] == "python" else words[0], *words[1:]]


def _environment() -> dict[str, str]:
    environment = os.environ | {"COLUMNS": str(COLUMNS), "PYTHONUNBUFFERED": "1"}
    return environment | ({"JAX_PLATFORMS": "cpu"} if jax.default_backend() == "tpu" else {})


def _started(words: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=environment
    )


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it printed nothing"])[-1]

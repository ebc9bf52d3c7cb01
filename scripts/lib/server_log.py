"""Starts a server of this project whose stderr goes to a file, so that it never waits for a reader."""

import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

_SECONDS = 600


def start(
    command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> tuple[subprocess.Popen, str]:
    """Starts a server and waits until it listens; ends this process with its log if it does not.

    Args:
      command: the server's command.
      log: file of its stderr.
      environment: its environment; None for that of this process.

    Returns:
      The process, and its URL without a path.
    """
    with log.open("w") as file:
        process = subprocess.Popen(command, stderr=file, env=environment)
    deadline = time.monotonic() + _SECONDS
    while True:
        # Asked before the log is read, which is complete if the process has ended.
        has_ended = process.poll() is not None or time.monotonic() > deadline
        text = log.read_text()
        if found := re.search(r"(http://\S+)/v1\n", text):
            return process, found[1]
        if has_ended:
            process.kill()
            process.wait()
            sys.exit(f"error: the server did not start: {text}")
        time.sleep(0.1)

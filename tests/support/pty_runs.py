"""A command in a terminal of its own, whose keys a test presses."""

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import places

_SEQUENCES = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """A process in a terminal.

    Attributes:
      screen: everything that it has written, escape sequences included.
    """

    def __init__(self, process: subprocess.Popen, descriptor: int) -> None:
        self.process, self._descriptor = process, descriptor
        self.screen = b""
        self._read = 0

    def press(self, keys: str) -> None:
        """Presses keys: "\\r" is Enter, "\\x03" Ctrl-C, "\\x04" Ctrl-D, "\\x1b[A" the arrow up."""
        os.write(self._descriptor, keys.encode())

    def until(self, text: str, seconds: float = 60.0) -> str:
        """Returns what was written since the last call, through the text and without escape sequences."""
        pattern = re.escape(text.encode())
        deadline = time.monotonic() + seconds
        while not (found := re.search(pattern, self.screen[self._read :])):
            assert time.monotonic() < deadline, f"no {text!r} in {self.screen[self._read :]!r}"
            assert self._more(), f"ended without {text!r}: {self.screen[self._read :]!r}"
        start, self._read = self._read, self._read + found.end()
        return _SEQUENCES.sub(b"", self.screen[start : self._read]).decode().replace("\r", "")

    def end(self, seconds: float = 30.0) -> int:
        """Returns the exit status, after the process has ended."""
        deadline = time.monotonic() + seconds
        while self._more():
            assert time.monotonic() < deadline, f"has not ended: {self.screen[self._read :]!r}"
        return self.process.wait(seconds)

    def _more(self) -> bool:
        """Waits a little for further output; returns False at its end."""
        if select.select([self._descriptor], [], [], 0.1)[0]:
            try:
                read = os.read(self._descriptor, 65536)
            except OSError:  # Linux reports the end of a terminal as an error.
                return False
            self.screen += read
            return bool(read)
        return True


@contextlib.contextmanager
def terminal(name: str, *arguments: str, state: Path, columns: int = 80) -> Iterator[Terminal]:
    """Runs `python -m aligner_jax.<name>` in a terminal; ends it with the block.

    Args:
      name: name of the command.
      arguments: its arguments.
      state: folder of the user's state.
      columns: width of the terminal.
    """
    mine, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    # A terminal that answers no questions about the place of its cursor.
    environment = {**os.environ, "PYTHONPATH": places.PYTHONPATH, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}
    environment |= {"XDG_STATE_HOME": str(state), "NO_PROXY": "127.0.0.1", "LC_ALL": "C.UTF-8"}
    code = (
        "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
        "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "-m", f"aligner_jax.{name}", *arguments],
        stdin=its, stdout=its, stderr=its, env=environment,
    )  # fmt: skip
    os.close(its)
    try:
        yield Terminal(process, mine)
    finally:
        process.kill()
        process.wait()
        os.close(mine)

"""Ends of a run before its last step that are no user error: an orderly stop, or an immediate exit."""

import contextlib
import os
import sys
import threading
from typing import Never

STALLED = 124
"""Exit status of a run that waited too long or whose other processes are gone; the same as of coreutils' `timeout`."""
_SHOW_CURSOR = b"\x1b[?25h"
_ERASE_LINE = b"\r\x1b[2K"


class Stopped(Exception):
    """Raised when a run stops as asked: before its first step, or after a step that is saved.

    Attributes:
      status: exit status of the process: 128 plus the signal's number, as in a shell.
    """

    def __init__(self, sentence: str, status: int) -> None:
        super().__init__(sentence)
        self.status = status


def at_once(sentence: str | None, status: int) -> Never:
    """Ends the process from any thread, whatever the other threads do. Prints a sentence; cleans nothing up.

    Files are left as after a kill: either complete, or temporary ones whose names start with a dot.

    Args:
      sentence: text for stderr; None prints nothing.
      status: exit status.
    """
    # Flushed in a thread with a time limit, since the main thread may be blocked by this very output.
    flush = threading.Thread(target=_flush, daemon=True)
    flush.start()
    flush.join(timeout=1)
    with contextlib.suppress(OSError):
        if os.isatty(1):
            os.write(1, _SHOW_CURSOR)
        if sentence is not None:
            write_line(sentence)
    os._exit(status)


def write_line(sentence: str) -> None:
    """Writes a line to stderr from any thread. On a terminal it takes the line of a progress bar, which goes on below.

    Raises:
      OSError: stderr cannot be written.
    """
    over = _ERASE_LINE if os.isatty(2) else b""
    os.write(2, over + f"{sentence}\n".encode(errors="backslashreplace"))


def is_held_up() -> bool:
    """Returns True if the interpreter would wait for other threads at exit.

    After a failed save Orbax's threads wait for minutes.
    """
    return any(not thread.daemon and thread is not threading.current_thread() for thread in threading.enumerate())


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()

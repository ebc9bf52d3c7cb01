"""How a run ends before its last step, other than by a mistake of the user's: in order, or at once."""

import contextlib
import os
import sys
import threading
from typing import Never

STALLED = 124
"""Exit status of a run that waited too long, or whose other processes are gone; that of coreutils' `timeout`."""
_SHOW_CURSOR = b"\x1b[?25h"


class Stopped(Exception):
    """A run that was asked to stop and did so between two steps, its state saved.

    Attributes:
      status: the process's exit status, 128 and the signal's number as a shell counts.
    """

    def __init__(self, sentence: str, status: int) -> None:
        super().__init__(sentence)
        self.status = status


def at_once(sentence: str | None, status: int) -> Never:
    """Ends the process from any thread, whatever the others are held up by: a sentence, and nothing is cleaned up.

    Files are as after a kill: whole, or temporary ones with a dot before their names.
    """
    # What holds up the main thread may be this very output.
    flush = threading.Thread(target=_flush, daemon=True)
    flush.start()
    flush.join(timeout=1)
    with contextlib.suppress(OSError):
        if os.isatty(1):
            os.write(1, _SHOW_CURSOR)
        if sentence is not None:
            os.write(2, f"{sentence}\n".encode(errors="backslashreplace"))
    os._exit(status)


def is_held_up() -> bool:
    """Whether the interpreter would wait for other threads before it ends; Orbax's wait minutes after a failed save."""
    return any(not thread.daemon and thread is not threading.current_thread() for thread in threading.enumerate())


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()

"""Ctrl-C while programs run on the device."""

import contextlib
import signal
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def held_interrupts() -> Iterator[Callable[[], bool]]:
    """Holds back the first Ctrl-C; yields a function that returns True once it was pressed.

    An exception between the start of a program and the receipt of its results would lose donated arrays. The second
    Ctrl-C raises KeyboardInterrupt wherever the process is, for programs that take too long. Where another handler
    than Python's is set, nothing changes.
    """
    pressed = False

    def hold(number: int, frame: object) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    usual = signal.getsignal(signal.SIGINT)
    if usual is not signal.default_int_handler:
        yield lambda: False
        return
    signal.signal(signal.SIGINT, hold)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, usual)

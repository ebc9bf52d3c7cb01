"""The first seconds of a command, while its libraries are imported. Imports nothing that takes time itself."""

# Not `signal`, which imports `enum`: the signals are in our hands 20 ms earlier.
import _signal as signal  # pyright: ignore[reportMissingImports]
import atexit
import os
import sys

_LINES = {
    signal.SIGINT: b"\ninterrupted\n",
    signal.SIGTERM: b"stopped by SIGTERM; the same command begins again, or goes on from what is on disk\n",
}


_is_command = False


def begin() -> None:
    """Readies the process of a command, `python -m aligner_jax.…`; does nothing in any other.

    Until `may_raise` is called SIGINT and SIGTERM end it at once, with one line and the status 130 or 143: an
    exception in the middle of an import is a traceback of a hundred lines, or is taken for a missing library.
    """
    global _is_command
    # Python has this there while it imports the package of the module that -m names, which may be a user's own.
    if getattr(sys, "argv", [])[:1] != ["-m"] or not any("aligner_jax." in word for word in sys.orig_argv):
        return
    _is_command = True
    # Signals that the parent has ignored (nohup, a shell's background) stay so.
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        if signal.getsignal(number) == usual:
            signal.signal(number, _end)
    open_closed_streams()
    # The function that is registered first runs last, when all is done: Python takes the handlers away as it ends.
    atexit.register(_ignore)


def may_raise(*, lasting: bool) -> None:
    """Lets SIGINT raise KeyboardInterrupt from here on, and SIGTERM end the process silently unless it is `lasting`.

    Where Python would print the exception and go on (in a finalizer, a callback of the garbage collector) it ends the
    process, unless a handler of its own keeps the signal in mind.
    """
    sys.unraisablehook = _take_unraisable
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not lasting and signal.getsignal(signal.SIGTERM) is _end:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def may_not_raise() -> None:
    """Lets SIGINT end a command at once again: as Python itself ends, an exception is a traceback that helps nobody."""
    if _is_command and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def open_closed_streams() -> None:
    """Opens /dev/null in place of standard streams that the parent has closed.

    Else the next file that is opened gets the number of one, and what a library prints ends up in it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free, which is this one.
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115


def _take_unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        # TensorStore tells of the other parts of a save that failed, when nobody listens any more.
        if str(unraisable.exc_value) != "Event loop is closed":
            sys.__unraisablehook__(unraisable)
    elif _is_command and signal.getsignal(signal.SIGINT) in (signal.default_int_handler, _end):
        _end(signal.SIGINT, None)


def _ignore() -> None:
    for number in _LINES:
        if signal.getsignal(number) is _end:
            signal.signal(number, signal.SIG_IGN)


def _end(number: int, frame: object) -> None:
    try:
        os.write(2, _LINES[number])
    finally:
        os._exit(128 + number)

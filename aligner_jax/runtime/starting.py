"""Signal handling in the first seconds of a command, while its libraries are imported. Imports nothing slow itself."""

# `signal` imports `enum`; `_signal` lets the handlers be set 20 ms earlier.
import _signal as signal  # pyright: ignore[reportMissingImports]
import atexit
import contextlib
import gc
import os
import sys
from collections.abc import Iterator

_LINES = {
    signal.SIGINT: b"\ninterrupted\n",
    signal.SIGTERM: b"stopped by SIGTERM; the same command begins again, or goes on from what is on disk\n",
}


_LOADING = b"loading JAX\xe2\x80\xa6\n"
_is_command = False
_collects = gc.isenabled()


def command() -> tuple[str, list[str]] | None:
    """Returns name and arguments of the command, `python -m aligner_jax.…`, that Python is about to run, or None."""
    # sys.argv is ["-m"] while Python imports the package of the module that -m names, which may be a user's own.
    if getattr(sys, "argv", [])[:1] != ["-m"]:
        return None
    for i, word in enumerate(sys.orig_argv):
        if word.startswith("-") and not word.startswith("--") and "m" in word:
            module = word.partition("m")[2]
            rest = sys.orig_argv[i + 1 :]
            if not module:
                module, rest = "".join(rest[:1]), rest[1:]
            package, _, name = module.partition(".")
            if package == "aligner_jax" and name:
                return name, rest
    return None


def begin() -> None:
    """Prepares the process of a command for its imports.

    Until `may_raise` is called, SIGINT and SIGTERM end the process at once, with one line and status 130 or 143. An
    exception during an import would be a traceback of a hundred lines, or be taken for a missing library.

    Garbage collection is off until `imported` is called: imports leave little garbage, and collections would take a
    sixth of their time.
    """
    global _is_command
    _is_command = True
    gc.disable()
    # Signals that the parent ignores (nohup, a background job) stay ignored.
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        if signal.getsignal(number) == usual:
            signal.signal(number, _end)
    open_closed_streams()
    # Python removes the handlers as it exits. The function registered first runs last, after all other work.
    atexit.register(_ignore)


def say_loading(name: str) -> None:
    """Prints a line before the imports of a command, which take seconds.

    Training tells its progress on stdout, whatever that is. Other commands have a line on stderr, if it is a terminal.
    """
    # The reader may have gone, which the command itself notices later.
    with contextlib.suppress(OSError):
        if name == "train":
            os.write(1, _LOADING)
        elif os.isatty(2):
            os.write(2, _LOADING)


def imported() -> None:
    """Switches garbage collection on again if it was on. In a command it leaves out the objects of the libraries."""
    if _is_command and not gc.isenabled():
        # They live as long as the process, and are most of what a collection goes through.
        gc.freeze()
    if _collects:
        gc.enable()


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Switches garbage collection off, which slows imports down; afterwards it is on again if it was on."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        # An import may fail in a process that goes on, which must not be left without garbage collection.
        if was_on:
            gc.enable()


def may_raise(*, lasting: bool) -> None:
    """Lets SIGINT raise KeyboardInterrupt from now on, and SIGTERM end the process silently unless it is `lasting`.

    In a finalizer or a callback of the garbage collector, Python would print the KeyboardInterrupt and go on. There it
    ends the process instead, unless another handler was installed, which records the signal.
    """
    sys.unraisablehook = _take_unraisable
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not lasting and signal.getsignal(signal.SIGTERM) is _end:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def may_not_raise() -> None:
    """Lets SIGINT end a command at once again: while Python exits, an exception would only print a traceback."""
    if _is_command and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def open_closed_streams() -> None:
    """Opens /dev/null in place of standard streams that the parent has closed.

    Otherwise the next opened file gets the descriptor of a closed stream, and receives the output of libraries.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # os.open returns the lowest free descriptor, which is `number`.
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115


def _take_unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        # TensorStore reports the other parts of a failed save when its event loop is already closed.
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

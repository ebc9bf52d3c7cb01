"""Signs of life during work that takes more than a moment: what is done, how much of it, and for how long.

On a terminal, a line on stderr is drawn anew and is erased at the end. Elsewhere (a file, a pipe) a stage is a line.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self, TextIO

from rich.cells import cell_len
from rich.console import Console

from aligner_jax.errors import one_line
from aligner_jax.runtime import distributed

_FIRST, _EVERY = 1.0, 0.5
"""Seconds before the line is drawn, and between two drawings."""
_MANY_BYTES = 4 * 2**30
_WORTH_TELLING = 3.0
"""Seconds from which the time that a stage took is printed."""

_open: "list[Waiting]" = []
"""The stages that are going on: the last one is shown, and only the first is a line of its own."""
_hiding: list[None] = []
"""One entry for each `hidden` that is open."""


class Waiting:
    """A stage of work that is going on. A context manager, by which the line disappears also if the work fails."""

    def __init__(
        self, what: str, *, lines: bool = True, total_bytes: int | None = None, stream: TextIO | None = None
    ) -> None:
        """Describes a stage; nothing is printed before it is entered.

        Args:
          what: words for the stage, such as "compiling v5e:2x4 (plan 1 of 3)".
          lines: True prints a line per stage where there is no terminal; False prints nothing there.
          total_bytes: bytes of the whole stage, of which `advance` tells a part; None shows the time alone.
          stream: a stream in place of stderr.
        """
        self._what, self._lines, self._total = one_line(what), lines, total_bytes
        self._stream = sys.stderr if stream is None else stream
        self._share, self._began, self._is_inner = 0.0, 0.0, False
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def advance(self, share: float) -> None:
        """Adds to the share of the stage that is done, which ends at 1."""
        self._share = min(1.0, self._share + share)

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        self._is_inner = bool(_open)
        _open.append(self)
        if _hiding or not distributed.is_first():
            self._lines = False
        elif self._stream.isatty():
            self._thread = threading.Thread(target=self._draw, daemon=True)
            self._thread.start()
        elif self._lines and not self._is_inner:
            self._print(f"{self._what} …")
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        _open.remove(self)
        seconds = time.monotonic() - self._began
        if self._thread is not None:
            self._ended.set()
            self._thread.join()
        is_shown = not self._is_inner and (self._lines or self._thread is not None)
        if kind is None and seconds >= _WORTH_TELLING and is_shown:
            self._print(f"{self._what}: {duration(seconds)}")

    def _draw(self) -> None:
        is_drawn = False
        while not self._ended.wait(_EVERY if is_drawn else _FIRST):
            if _open[-1:] != [self]:
                continue
            width = Console(file=self._stream).width - 1
            line = self.line(time.monotonic() - self._began)
            while cell_len(line) > width:
                line = line[:-1]
            self._write(f"\r\x1b[K{line}")
            is_drawn = True
        if is_drawn:
            self._write("\r\x1b[K")

    def line(self, seconds: float) -> str:
        """Returns the line after so many seconds."""
        return f"{self._what}{self.part} … {duration(seconds)}"

    @property
    def part(self) -> str:
        """The part of `total_bytes` that is done, ", 1.2 of 4.5 GB"; "" without `total_bytes`."""
        return f", {self._share * self._total / 1e9:.1f} of {self._total / 1e9:.1f} GB" if self._total else ""

    def _print(self, line: str) -> None:
        self._write(f"{line}\n")

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            # The reader of stderr has gone: the work goes on without it.
            self._ended.set()


def duration(seconds: float) -> str:
    """Returns a time as "12 s", "3 min 44 s" or "1 h 5 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


_reading: list[Waiting] = []
"""The stage whose share of read weights `advance_reading` tells, the last one if stages are nested."""


@contextmanager
def reading(what: str, total_bytes: int) -> Iterator[None]:
    """Shows how much of `total_bytes` is read; on a terminal alone, unless a large part of a minute is to be expected.

    Readers of files call `advance_reading`.
    """
    stage = Waiting(what, lines=total_bytes >= _MANY_BYTES, total_bytes=total_bytes)
    with stage:
        _reading.append(stage)
        try:
            yield
        finally:
            _reading.remove(stage)


def part_read() -> str:
    """Returns `Waiting.part` of what `reading` counts, for another display; "" if nothing is read."""
    # A slice, since another thread may end the reading meanwhile.
    return "".join(stage.part for stage in _reading[-1:])


def advance_reading(share: float) -> None:
    """Adds to the share that is read of what `reading` shows; without effect if nothing is shown."""
    if _reading:
        _reading[-1].advance(share)


@contextmanager
def hidden() -> Iterator[None]:
    """Shows no stage that begins within, since another display has the terminal or nothing is to be printed."""
    _hiding.append(None)
    try:
        yield
    finally:
        _hiding.pop()


@contextmanager
def stages(*, stream: TextIO | None = None) -> Iterator[Callable[[str], None]]:
    """Yields a function that ends the stage before it and begins the next, whose words it is given."""
    now: list[Waiting] = []

    def begin(what: str) -> None:
        if now:
            now.pop().__exit__(None, None, None)
        now.append(Waiting(what, stream=stream).__enter__())

    try:
        yield begin
    except BaseException as error:
        if now:
            now.pop().__exit__(type(error), error, None)
        raise
    if now:
        now.pop().__exit__(None, None, None)

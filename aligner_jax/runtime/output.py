"""Output of a command: text of files and of logs as it can be shown, and a reader that may go away."""

import logging
import os
import sys
import warnings
from collections.abc import Iterable
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from aligner_jax.errors import one_line, printable


class PlainConsole(Console):
    """A console on which names, tokens and answers of files stay text: their control characters are escaped."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Renders as rich does."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


def wide_console() -> Console:
    """Returns the console of a command that prints tables: as wide as the terminal, else wide enough for them."""
    return PlainConsole(highlight=False, width=None if Console().is_terminal else 160)


class OutputEnded(Exception):
    """Raised where output can no longer be written and the command is not to go on without."""


class Output:
    """Stands for a text stream. Once that fails, the rest of what is written is dropped.

    Attributes:
      failure: why; None while all is well.
    """

    def __init__(self, stream: TextIO, *, lasting: bool) -> None:
        """Writes to `stream`; where the command is not `lasting`, a failure raises `OutputEnded`."""
        self._stream, self._lasting = stream, lasting
        self.failure: OSError | None = None
        # Names of files that are not UTF-8, and consoles that are not.
        if (reconfigure := getattr(stream, "reconfigure", None)) is not None:
            reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        """Writes text as a stream does; returns its length."""
        if self.failure is None:
            try:
                return self._stream.write(text)
            except OSError as error:
                self._fail(error)
        return len(text)

    def flush(self) -> None:
        """Flushes the stream."""
        if self.failure is None:
            try:
                self._stream.flush()
            except OSError as error:
                self._fail(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _fail(self, error: OSError) -> None:
        self.failure = error
        # The interpreter would try to write the rest of its buffer once more, at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
        if not self._lasting:
            raise OutputEnded


def replace_stdout(*, lasting: bool) -> Output:
    """Puts an `Output` in place of sys.stdout, and returns it."""
    output = sys.stdout if isinstance(sys.stdout, Output) else Output(sys.stdout, lasting=lasting)
    sys.stdout = output  # pyright: ignore[reportAttributeAccessIssue]
    return output


class _Plain(logging.Formatter):
    """The message alone, on one line: a name of a module or a traceback means nothing to a user."""

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            message = f"{message}: {record.exc_info[1]}"
        return one_line(message)


def make_plain() -> None:
    """Formats what the root logger prints, and warnings; called once a command's libraries are imported.

    One of them may have made a handler by then, whose lines begin with a level, a logger's or a file's name.
    """
    logging.basicConfig()
    for handler in logging.root.handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream in (sys.stderr, sys.__stderr__):
            handler.setFormatter(_Plain())
    warnings.formatwarning = lambda message, *_, **__: f"{one_line(str(message))}\n"

"""Output of a command: escapes control characters, and handles a reader that goes away."""

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
    """A console that escapes control characters, which names, tokens and answers may contain."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Renders as rich does."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


def wide_console() -> Console:
    """Returns a console for tables: as wide as the terminal or as COLUMNS says, or 160 columns without either."""
    is_known = Console().is_terminal or os.environ.get("COLUMNS", "").isdigit()
    return PlainConsole(highlight=False, width=None if is_known else 160)


class OutputEnded(Exception):
    """Raised when output can no longer be written, in commands that are not `lasting`."""


class Output:
    """A wrapper around a text stream. After the stream fails, further output is dropped.

    Attributes:
      failure: the error of the stream, or None.
    """

    def __init__(self, stream: TextIO, *, lasting: bool) -> None:
        """Wraps `stream`. Unless the command is `lasting`, a failure raises `OutputEnded`."""
        self._stream, self._lasting = stream, lasting
        self.failure: OSError | None = None
        # Needed for file names that are not UTF-8, and for consoles with another encoding.
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
        # Otherwise the interpreter would try to write the rest of the buffer once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
        if not self._lasting:
            raise OutputEnded


def replace_stdout(*, lasting: bool) -> Output:
    """Replaces sys.stdout by an `Output` and returns it."""
    output = sys.stdout if isinstance(sys.stdout, Output) else Output(sys.stdout, lasting=lasting)
    sys.stdout = output  # pyright: ignore[reportAttributeAccessIssue]
    return output


class _Plain(logging.Formatter):
    """A formatter that prints the message alone, on one line. Module names and tracebacks do not help a user."""

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            message = f"{message}: {record.exc_info[1]}"
        return one_line(message)


def _is_not_printed(record: logging.LogRecord) -> bool:
    """Returns False if the record's own logger has printed it: huggingface_hub and datasets would print it twice."""
    logger: logging.Logger | None = logging.getLogger(record.name)
    while logger is not None and logger is not logging.root:
        if any(isinstance(each, logging.StreamHandler) and each.stream is sys.stderr for each in logger.handlers):
            return False
        logger = logger.parent
    return True


def make_plain() -> None:
    """Formats log lines and warnings as plain sentences.

    Must be called after a command's libraries are imported: one of them may have installed a handler whose lines start
    with a level, a logger's name or a file name.
    """
    logging.basicConfig()
    for handler in logging.root.handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream in (sys.stderr, sys.__stderr__):
            handler.setFormatter(_Plain())
            handler.addFilter(_is_not_printed)
    warnings.formatwarning = lambda message, *_, **__: f"{one_line(str(message))}\n"

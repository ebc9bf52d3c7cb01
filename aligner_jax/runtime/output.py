"""What a command prints, where nobody may read it any more: a closed pipe, a full disk."""

import os
import sys
from typing import Any, TextIO


class OutputEnded(Exception):
    """What a command prints can no longer be written, and it is not to go on without."""


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
        # What is left in its buffer the interpreter would try to write once more, at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
        if not self._lasting:
            raise OutputEnded


def replace_stdout(*, lasting: bool) -> Output:
    """Puts an `Output` in place of sys.stdout, and returns it."""
    output = sys.stdout if isinstance(sys.stdout, Output) else Output(sys.stdout, lasting=lasting)
    sys.stdout = output  # pyright: ignore[reportAttributeAccessIssue]
    return output

"""Outputs of a chat: lines of plain text, or a terminal."""

import sys
from collections.abc import Iterator, Sequence
from typing import Protocol

from rich.console import RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from aligner_jax.chatting.model import Piece
from aligner_jax.errors import InputError, printable
from aligner_jax.runtime.output import PlainConsole

_LEAST_COLUMN = 24
"""Characters that an answer beside others has at least; a line of fewer is hard to read, and cuts long words."""


class Screen(Protocol):
    """Output of a chat.

    Attributes:
      stops_answers: True if Ctrl-C ends an answer, and not the chat.
    """

    stops_answers: bool

    def show(self, names: Sequence[str], pieces: Iterator[Piece], texts: list[str]) -> None:
        """Shows one answer as it comes, or several side by side.

        Args:
          names: names of the answers.
          pieces: pieces of the answers.
          texts: empty texts, to which the pieces are appended.
        """
        ...

    def say(self, sentence: str) -> None:
        """Shows a sentence that is no answer."""
        ...

    def fail(self, error: InputError) -> None:
        """Shows an error."""
        ...


class PlainScreen:
    """Answers on stdout, everything else on stderr."""

    stops_answers = False

    def show(self, names: Sequence[str], pieces: Iterator[Piece], texts: list[str]) -> None:
        """Writes one answer as it comes, or several below their names once all are whole."""
        if len(names) == 1:
            _stream(pieces, texts)
            return
        for piece in pieces:
            texts[piece.answer] += piece.text
        for name, text in zip(names, texts, strict=True):
            _write(f"── {name}\n{text.strip()}\n")

    def say(self, sentence: str) -> None:
        """Writes a line on stderr."""
        print(printable(sentence), file=sys.stderr, flush=True)

    def fail(self, error: InputError) -> None:
        """Writes a line on stderr."""
        self.say(f"error: {error}")


class TerminalScreen:
    """A terminal. Control characters of everything that is shown are escaped."""

    stops_answers = True

    def __init__(self) -> None:
        self._console = PlainConsole(highlight=False)

    def show(self, names: Sequence[str], pieces: Iterator[Piece], texts: list[str]) -> None:
        """Writes one answer as it comes, or several in columns."""
        if len(names) == 1:
            _stream(pieces, texts)
            return
        try:
            # The part that does not fit the screen is left out until the end: lines that scroll cannot be drawn anew.
            with Live(console=self._console, transient=True, auto_refresh=False) as live:
                for piece in pieces:
                    texts[piece.answer] += piece.text
                    live.update(_columns(names, texts, self._console.width), refresh=True)
        finally:
            self._console.print(_columns(names, texts, self._console.width))

    def say(self, sentence: str) -> None:
        """Prints a sentence."""
        self._console.print(Text(sentence, style="dim"))

    def fail(self, error: InputError) -> None:
        """Prints an error."""
        self._console.print(Text(f"error: {error}", style="red"))


def _stream(pieces: Iterator[Piece], texts: list[str]) -> None:
    try:
        for piece in pieces:
            texts[0] += piece.text
            _write(piece.text)
    except BaseException:
        _write("\n" if texts[0] else "")
        raise
    _write("\n")


def _write(text: str) -> None:
    sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def _columns(names: Sequence[str], texts: Sequence[str], width: int) -> RenderableType:
    """Returns the answers side by side, or one below the other if the columns would be narrow."""
    if width < _LEAST_COLUMN * len(names):
        lines = (line for name, text in zip(names, texts, strict=True) for line in (f"── {name}", text.strip(), ""))
        return Text("\n".join(lines))
    table = Table(expand=True)
    for name in names:
        table.add_column(Text(name), ratio=1, overflow="fold")
    table.add_row(*(Text(text.strip()) for text in texts))
    return table

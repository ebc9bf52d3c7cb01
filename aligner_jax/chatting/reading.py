"""Sources of the lines of a chat: the keyboard of a terminal, or any stream."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import FileHistory, History, InMemoryHistory

from aligner_jax.errors import printable


class _FileHistory(FileHistory):
    """A history that a full disk does not end the chat of."""

    def store_string(self, string: str) -> None:
        """Appends a line to the file."""
        with contextlib.suppress(OSError):
            super().store_string(string)


def lines_of_stdin() -> Iterator[str]:
    """Yields the lines of stdin. Bytes that are not UTF-8 become lone surrogates, which tokenizers refuse."""
    stdin: Any = sys.stdin
    stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
    yield from stdin


def lines_of_terminal(prompt: Callable[[], str], words: Callable[[], list[str]], history: Path | None) -> Iterator[str]:
    """Yields lines that are edited at a prompt, until Ctrl-D. Ctrl-C clears the line.

    Args:
      prompt: returns the text before the line.
      words: returns words that the tab key completes.
      history: file of earlier lines; None keeps them for this chat only.
    """
    session = PromptSession(
        history=_history(history), completer=WordCompleter(words, sentence=True), complete_while_typing=False,
        enable_history_search=True,
    )  # fmt: skip
    while True:
        try:
            yield session.prompt(FormattedText([("bold", printable(prompt()))]))
        except KeyboardInterrupt:
            continue
        except EOFError:
            return


def history_file() -> Path:
    """Returns the usual file of earlier lines: that of the user's state (XDG_STATE_HOME)."""
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "aligner_jax" / "chat_history"


def _history(path: Path | None) -> History:
    if path is None:
        return InMemoryHistory()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Questions are nobody else's business.
        os.close(os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600))
    except OSError:
        return InMemoryHistory()
    return _FileHistory(str(path))

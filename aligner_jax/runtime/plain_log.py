"""Warnings and log lines of this package and its libraries, as plain sentences on stderr."""

import logging
import sys
import warnings

from aligner_jax.errors import one_line


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

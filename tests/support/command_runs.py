"""Runs commands in this process, with their own flags; returns exit status and output.

Importing the libraries takes seconds, so only tests of signals and streams start a real process.
"""

import contextlib
import io
import logging
import os
import runpy
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from absl import flags

from aligner_jax.runtime import command


class Ended(NamedTuple):
    """The result of a command: exit status, standard output and standard error."""

    status: int
    out: str
    err: str


def run_command(name: str, *arguments: str, folder: Path | None = None) -> Ended:
    """Runs `python -m aligner_jax.<name>` with these arguments, in this folder, without a process."""
    out, err = io.StringIO(), io.StringIO()
    with (
        _state(),
        mock.patch.object(sys, "argv", [name, *arguments]),
        contextlib.chdir(folder or Path.cwd()),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            # A test may have imported the module; it is imported again, with its flags.
            warnings.filterwarnings("ignore", message=".*found in sys.modules", category=RuntimeWarning)
            runpy.run_module(f"aligner_jax.{name}", run_name="__main__", alter_sys=True)
            raise AssertionError(f"the command {name} has not exited")
        except SystemExit as end:
            if isinstance(end.code, str):
                # Python does the same if a program exits with a text.
                print(end.code, file=sys.stderr)
            status = end.code if isinstance(end.code, int) else 1
    return Ended(status, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def _state() -> Iterator[None]:
    """Starts without the package's flags, and restores the process's state afterwards."""
    formatters = [(handler, handler.formatter) for handler in logging.root.handlers]
    with (
        mock.patch.dict(os.environ),
        mock.patch.object(sys, "unraisablehook", sys.unraisablehook),
        mock.patch.object(warnings, "formatwarning", warnings.formatwarning),
        mock.patch.object(command, "_config_flags", []),
        warnings.catch_warnings(),
        _flags(),
    ):
        try:
            yield
        finally:
            for handler, formatter in formatters:
                handler.setFormatter(formatter)


@contextlib.contextmanager
def _flags() -> Iterator[None]:
    values = vars(flags.FLAGS)
    before = {name: _copied(value) for name, value in values.items()}
    libraries = ("absl", "grain", "jax", "ml_collections")
    for module, defined in list(flags.FLAGS.flags_by_module_dict().items()):
        if module.partition(".")[0] not in libraries:
            for flag in list(defined):
                delattr(flags.FLAGS, flag.name)
    try:
        yield
    finally:
        values.clear()
        values.update(before)


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: list(each) if isinstance(each, list) else each for key, each in value.items()}
    return value

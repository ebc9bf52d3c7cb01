"""Commands and their flags, read from the files of the commands without running them."""

import ast
import functools
import runpy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from absl import flags

from aligner_jax.runtime import command as command_line

PACKAGE = Path(command_line.__file__).parents[1]
_NO_COMMANDS = {"__init__", "__main__", "errors"}


def commands() -> list[str]:
    """Returns the names of the commands, `python -m aligner_jax.NAME`."""
    files = {path.stem for path in PACKAGE.glob("*.py") if path.stem not in _NO_COMMANDS}
    return sorted(files | {path.parent.name for path in PACKAGE.glob("*/__main__.py")})


def file_of(name: str) -> Path:
    """Returns the file of a command: NAME.py, or the folder's NAME/__main__.py."""
    file = PACKAGE / f"{name}.py"
    return file if file.is_file() else PACKAGE / name / "__main__.py"


@functools.cache
def flags_of(name: str) -> dict[str, flags.Flag]:
    """Returns the flags of a command by name, in the order of their definition."""
    with (
        _without_flags(),
        mock.patch.object(command_line, "_config_flags", []),
        mock.patch.object(command_line, "run"),
    ):
        file = str(file_of(name))
        runpy.run_path(file, run_name="__main__")
        # absl files flags of the module "__main__" under sys.argv[0], which is the file's path meanwhile.
        return {flag.name: flag for flag in flags.FLAGS.get_flags_for_module(file)}


def description_of(name: str) -> str:
    """Returns the docstring of a command's file, without running it."""
    return ast.get_docstring(ast.parse(file_of(name).read_text(encoding="utf-8"))) or ""


@contextmanager
def _without_flags() -> Iterator[None]:
    """Removes the flags of this package, and restores them afterwards: two commands may have a flag of one name."""
    values = vars(flags.FLAGS)
    # Removing a flag changes the lists in these dicts.
    before = {name: _copied(value) for name, value in values.items()}
    lists = {name: list(found) for name, found in flags.FLAGS.flags_by_module_dict().items()}
    for module, defined in lists.items():
        if module.partition(".")[0] not in ("absl", "grain", "jax", "ml_collections"):
            for flag in defined:
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

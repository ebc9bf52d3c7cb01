"""Runs a command of aligner_jax by its name.

    aligner-jax train --config=quickstart
    python -m aligner_jax train --config=quickstart

The same as `python -m aligner_jax.train --config=quickstart`.
"""

import ast
import difflib
import importlib.metadata
import runpy
import sys

from aligner_jax.runtime import starting
from aligner_jax.usage import early
from aligner_jax.usage.commands import command_names, sentence_of
from aligner_jax.usage.source import module_of

_VERSION = {"--version", "version"}
_HELP = {"--help", "-help", "-h", "help"}


def main() -> None:
    """Runs the command that the first argument names; lists the commands without one. Imports no JAX itself."""
    starting.begin()
    name, *arguments = sys.argv[1:] or ["help"]
    program = "aligner-jax " if sys.argv[0].endswith("aligner-jax") else "python -m aligner_jax "
    name = name.replace("-", "_") if name not in _VERSION | _HELP else name
    if name in _HELP and arguments and arguments[0] in command_names():
        name, arguments = arguments[0], ["--help"]
    if name in _VERSION:
        early.show(f"aligner_jax {_version()}, jax {importlib.metadata.version('jax')}\n")
    elif name in _HELP:
        early.show(_commands(program))
    elif name not in command_names():
        near = difflib.get_close_matches(name, command_names(), n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(command_names())}"
        sys.exit(f"error: {name[:100]!r} is not a command; {hint}")
    else:
        if early.answer(name, arguments, program=program):
            starting.say_loading(name)
        else:
            starting.imported()
        sys.argv = [sys.argv[0], *arguments]
        runpy.run_module(f"aligner_jax.{name}", run_name="__main__", alter_sys=True)


def _version() -> str:
    package = module_of("aligner_jax")
    return package.value(ast.Name("__version__"))


def _commands(program: str) -> str:
    lines = "\n".join(f"  {name:<10} {sentence_of(name)}" for name in command_names())
    return (
        f"Aligns a large language model with a few thousand numbers, on TPUs, GPUs and CPUs.\n\n"
        f"  {program}COMMAND --FLAG=VALUE …\n"
        f"  {program}COMMAND --help\n\n"
        f"Commands:\n{lines}\n"
    )


if __name__ == "__main__":
    main()

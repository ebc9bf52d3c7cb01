"""Answers --help and wrong flags of a command before its libraries are imported, which takes seconds."""

import os
import sys
from collections.abc import Sequence

from absl import app, flags  # `app` defines the flags that every command takes

from aligner_jax.errors import InputError
from aligner_jax.usage.commands import Command, command_names, read_command, takes_flags
from aligner_jax.usage.config_fields import config_paragraphs
from aligner_jax.usage.page import page, short_usage
from aligner_jax.usage.parse import asks_for_help, parse_flags
from aligner_jax.usage.source import UnknownValue

_OF_LIBRARIES = ("grain_", "experimental_orbax_", "array_record_", "jax_", "xla_", "help", "only_check_args")
"""Beginnings of flags that libraries define when they are imported."""


def answer(name: str, arguments: Sequence[str], *, program: str = "python -m aligner_jax.") -> bool:
    """Exits if the command's flags alone tell what to print: for --help, without arguments, or for a wrong flag.

    Otherwise returns, and the module is to be run: True if it will call `command.run`.

    Args:
      name: module of the package, which need not be a command with flags.
      arguments: its arguments.
      program: beginning of the command line, for examples.
    """
    if name not in command_names() or not takes_flags(name):
        return False
    try:
        command = read_command(name)
        if asks_for_help(arguments):
            declared = [command.flags[each] for each in command.names]
            show(page(command.doc, declared, program=program, more=config_paragraphs(name)))
            sys.exit(0)
    except UnknownValue:
        return True
    if not arguments:
        usage = short_usage(command.doc, name, program=program)
        sys.exit(f"error: {name} needs flags, such as these; --help explains all of them:\n\n{usage}")
    _check(command, name, arguments)
    return True


def _check(command: Command, name: str, arguments: Sequence[str]) -> None:
    if any(word.lstrip("-").removeprefix("no").startswith(_OF_LIBRARIES) for word in arguments if word[:1] == "-"):
        return
    app.define_help_flags()
    for known in list(flags.FLAGS):
        # A short name comes with the flag's long one.
        if known not in command.flags and known != flags.FLAGS[known].short_name:
            command.flags[known] = flags.FLAGS[known]
    try:
        parse_flags(command.flags, [name, *arguments], command.names, command.argument)
    except InputError as error:
        sys.exit(f"error: {error}")


def show(text: str) -> None:
    """Prints a text; exits with status 141 if its reader has gone."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # Otherwise the interpreter would try to write the rest of the buffer once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(141)

"""The page of all commands with their flags."""

from absl import flags

from aligner_jax.usage.commands import command_names, read_command
from aligner_jax.usage.page import help_of
from scripts.site.reference.text import code, paragraphs, prose, table

HEAD = """# Commands

Each is `python -m aligner_jax.NAME`. Flags are written `--name=value`, and `--noname` switches one off that is on.
Commands with `--config=FILE` take any [field of a config](config.md) as `--config.section.field=value` too.
"""


def commands_page() -> str:
    """Returns the page, in Markdown."""
    return "\n".join([HEAD, *(described(name) for name in command_names())])


def described(name: str) -> str:
    """Returns the section of a command: its description, and a table of its flags."""
    command = read_command(name)
    flags_of = (command.flags[flag] for flag in command.names)
    rows = [[code(f"--{flag.name}"), _kind(flag), _default(flag), prose(help_of(flag))] for flag in flags_of]
    return "\n".join(
        [f"## {code(name)}\n", paragraphs(command.doc), table(["flag", "type", "default", "meaning"], rows)]
    )


def _kind(flag: flags.Flag) -> str:
    values = getattr(flag.parser, "enum_values", None)
    if values:
        return ", ".join(code(value) for value in values)
    several = ", may be repeated" if isinstance(flag, flags.MultiFlag) else ""
    return prose(flag.flag_type().removeprefix("multi ") + several)


def _default(flag: flags.Flag) -> str:
    return code(flag.default) if flag.default is not None else ""

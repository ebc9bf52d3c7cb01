"""The package's commands and their flags."""

import ast
from pathlib import Path
from typing import NamedTuple

from absl import flags

from aligner_jax.usage.source import PACKAGE, Module, UnknownValue

# The flag --config belongs to the command, not to this module.
flags.disclaim_key_flags()

_FIRST = ("train", "generate", "chat", "evaluate", "serve", "analyze", "export")


class Command(NamedTuple):
    """A command's flags, and how it takes them.

    Attributes:
      doc: docstring of its module.
      flags: its flags alone.
      names: names of the flags, in the order of the file.
      argument: flag whose value may be given without its name, or None.
    """

    doc: str
    flags: flags.FlagValues
    names: list[str]
    argument: str | None


def file_of(name: str) -> Path:
    """Returns the path of the command's file: aligner_jax/NAME.py, or of a folder aligner_jax/NAME/__main__.py."""
    folder = PACKAGE / name
    return folder / "__main__.py" if folder.is_dir() else folder.with_suffix(".py")


def command_names() -> list[str]:
    """Returns the names of the commands, those of the first hour first."""
    files = {path.stem for path in PACKAGE.glob("*.py") if not path.stem.startswith("_")}
    names = {name for name in files if takes_flags(name)} | {path.parent.name for path in PACKAGE.glob("*/__main__.py")}
    return [name for name in _FIRST if name in names] + sorted(names - {*_FIRST})


def takes_flags(name: str) -> bool:
    """Returns True if a command has absl's flags, as those that call `command.run` have; others parse their own."""
    return "command.run(" in file_of(name).read_text(encoding="utf-8")


def sentence_of(name: str) -> str:
    """Returns the first sentence of a command's docstring."""
    return Module(file_of(name)).doc.partition("\n\n")[0].replace("\n", " ")


def read_command(name: str) -> Command:
    """Returns a command as its file declares it.

    Raises:
      UnknownValue: a flag is declared with a value that only running the file would tell.
    """
    module = Module(file_of(name))
    own, names, argument = flags.FlagValues(), [], None
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        called = ast.unparse(node.func)
        if called == "command.config_flag":
            names.append(define_config(own).name)
        elif called == "command.run":
            argument = next((module.value(each.value) for each in node.keywords if each.arg == "argument"), None)
        elif called.startswith("flags.DEFINE_"):
            define = getattr(flags, node.func.attr)
            values = [module.value(each) for each in node.args]
            keywords = {each.arg: module.value(each.value) for each in node.keywords if each.arg is not None}
            if len(keywords) < len(node.keywords):
                raise UnknownValue(called)
            names.append(define(*values, **keywords, flag_values=own).name)
    return Command(module.doc, own, names, argument)


def define_config(flag_values: flags.FlagValues) -> flags.FlagHolder[str | None]:
    """Defines the flag --config."""
    return flags.DEFINE_string(
        "config",
        None,
        "Config file, or the name of one of the package's; --config.SECTION.FIELD=VALUE overrides one of its fields.",
        flag_values=flag_values,
    )

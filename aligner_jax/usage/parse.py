"""Parses a command line into flags and overrides of the config, with one-sentence errors."""

import difflib
import re
from collections.abc import Iterable, Sequence

from absl import flags

from aligner_jax.errors import InputError

Override = tuple[str, str | bool]
"""A dotted field name with its given text; True for --config.x and False for --noconfig.x."""

_LONGEST_NAME = 100
"""Limit on the length of a flag's name; real ones stay below."""
_MOST_LISTED = 16
"""Most flags that an error lists."""
_HELP = {"help", "h", "helpshort"}


def asks_for_help(arguments: Iterable[str]) -> bool:
    """Returns True if a command's arguments have --help, or -h."""
    for argument in arguments:
        if argument == "--":
            return False
        if argument.startswith("-") and argument.lstrip("-") in _HELP:
            return True
    return False


def parse_flags(
    flag_values: flags.FlagValues, argv: Sequence[str], names: Sequence[str], argument_name: str | None = None
) -> list[Override]:
    """Sets the flags, and returns the overrides of the config in their order.

    Args:
      flag_values: the flags that are taken. Without --config there are no overrides.
      argv: name of the program and its arguments.
      names: the command's own flags, for errors.
      argument_name: flag whose value may be given without its name; None refuses such values.

    Raises:
      InputError: a flag is unknown, lacks its value or has a wrong one, or a value has no flag.
    """
    rest, overrides = split_overrides(argv) if "config" in flag_values else (list(argv), [])
    for argument in rest:
        # absl searches for a similar flag by recursion over the letters of the name.
        if argument.startswith("-") and len(name := argument.lstrip("-").partition("=")[0]) > _LONGEST_NAME:
            raise InputError(f"--{name[:_LONGEST_NAME]}… is not a flag of this command")
    try:
        positional = flag_values(rest)[1:]
    except flags.UnrecognizedFlagError as error:
        raise InputError(f"--{error.flagname} is not a flag of this command; {_hint(error.flagname, names)}") from None
    except flags.Error as error:
        raise InputError(_plain(str(error))) from None
    if argument_name is not None and len(positional) == 1 and not flag_values[argument_name].present:
        flag_values[argument_name].parse(positional.pop())
    if positional:
        raise InputError(f"{positional[0]!r} is not a flag; flags are written --name=value")
    return overrides


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[Override]]:
    """Returns the command line without --config.FIELD=VALUE and the like, and these."""
    rest, overrides = [], []
    waiting = list(argv)
    while waiting:
        argument = waiting.pop(0)
        name, equals, text = argument.lstrip("-").partition("=")
        if argument == "--":
            return [*rest, argument, *waiting], overrides
        if not argument.startswith("-") or not name.startswith(("config.", "noconfig.")):
            rest.append(argument)
        elif name.startswith("noconfig."):
            overrides.append((name.removeprefix("noconfig."), False))
        elif equals:
            overrides.append((name.removeprefix("config."), text))
        elif waiting and not waiting[0].startswith("--"):
            overrides.append((name.removeprefix("config."), waiting.pop(0)))
        else:
            overrides.append((name.removeprefix("config."), True))
    return rest, overrides


def _hint(name: str, names: Sequence[str]) -> str:
    """Returns a clause with the flag that was probably meant, or all flags of the command."""
    if "config" in names and "." in name:
        return f"fields of the config are written --config.{name}=VALUE"
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.7) or [
        known for known in names if len(name) > 3 and (known.startswith(name) or name in known.split("_"))
    ]
    if near:
        return f"did you mean --{near[0]}?"
    listed = ", ".join(f"--{known}" for known in names)
    return f"its flags are {listed}" if len(names) <= _MOST_LISTED else "--help explains its flags"


def _plain(message: str) -> str:
    """Returns absl's message about a wrong value without the words of Python's own."""
    message = " ".join(message.split())
    message = re.sub(r"invalid literal for int\(\) with base 10: .*", "should be a whole number", message)
    message = re.sub(r"could not convert string to float: .*", "should be a number", message)
    return message.replace("|", ", ") if "should be one of <" in message else message

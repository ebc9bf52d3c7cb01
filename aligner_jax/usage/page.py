"""The text of --help: what a command does, examples, its flags, and the fields of its config."""

import re
import shutil
import textwrap
from collections.abc import Iterable, Sequence

from absl import flags

_NARROWEST, _WIDEST = 40, 120
_INDENT = 26
_PLACEHOLDERS = {flags.IntegerParser: "N", flags.FloatParser: "X"}
_OF_ABSL = re.compile(r"^<[^>]*>: |; repeat this option to specify a list of values$| \(a comma separated list\)$")
_AS_MODULE = "python -m aligner_jax."
_LAST = "--helpfull adds the flags of the libraries."


def page(doc: str, declared: Sequence[flags.Flag], *, program: str = _AS_MODULE, more: Iterable[str] = ()) -> str:
    """Returns the help of a command.

    Args:
      doc: docstring of the command's module: sentences, and examples that begin with "python -m aligner_jax.".
      declared: its flags, the most used first.
      program: beginning of a command line, in place of "python -m aligner_jax.".
      more: paragraphs that follow the flags.
    """
    described = [line for flag in declared for line in _described(flag)]
    parts = [doc.strip().replace(_AS_MODULE, program), "\n".join(["Flags:", *described]), *more]
    return "\n\n".join(filter(None, parts)) + f"\n\n{_LAST}\n"


def short_usage(doc: str, name: str, *, program: str = _AS_MODULE) -> str:
    """Returns lines for a command that was given nothing: its first example, and where the rest is said."""
    examples = [line.strip() for line in doc.splitlines() if line.strip().startswith(_AS_MODULE)]
    example = examples[0].removesuffix("\\").strip() if examples else f"{_AS_MODULE}{name} --FLAG=VALUE"
    lines = f"{example}\n{_AS_MODULE}{name} --help".replace(_AS_MODULE, program).splitlines()
    return "\n".join(f"  {line}" for line in lines)


def columns() -> int:
    """Returns the width of a help page: that of the terminal, within limits."""
    return max(_NARROWEST, min(shutil.get_terminal_size().columns, _WIDEST))


def help_of(flag: flags.Flag) -> str:
    """Returns a flag's help on one line, without absl's additions: choices before it, a remark on repetition behind."""
    return _OF_ABSL.sub("", " ".join((flag.help or "").split()))


def _described(flag: flags.Flag) -> list[str]:
    head = f"  --{flag.name}"
    choices = getattr(flag.parser, "enum_values", None)
    if flag.boolean:
        head = f"  --[no]{flag.name}" if flag.default else head
    elif not choices:
        head += f"={_PLACEHOLDERS.get(type(flag.parser)) or flag.name.rpartition('_')[2].upper()}"
    notes = [help_of(flag)]
    if choices:
        notes.append(f"One of {', '.join(map(str, choices))}.")
    default = flag.default
    if not flag.boolean and default not in (None, [], ""):
        shown = ",".join(map(str, default)) if isinstance(default, list) else default
        notes.append(f"Default: {shown}.")
    lines = textwrap.wrap(" ".join(notes), columns() - _INDENT, break_long_words=False, break_on_hyphens=False)
    if len(head) + 2 > _INDENT:
        return [head, *(" " * _INDENT + line for line in lines)]
    first, *rest = lines or [""]
    return [f"{head:<{_INDENT}}{first}".rstrip(), *(" " * _INDENT + line for line in rest)]

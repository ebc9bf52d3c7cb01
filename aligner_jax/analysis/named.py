"""The adapters of an analysis, each under a name that tells it from the others."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from aligner_jax.errors import InputError
from aligner_jax.files.content import exists
from aligner_jax.peft import Adapter
from aligner_jax.peft.artifact import load_adapter, prompt_template, recorded_prompt_format
from aligner_jax.weights.base import Base

BASE = "base"
"""What figures call the base alone, and no adapter."""


@dataclasses.dataclass(frozen=True)
class Named:
    """An adapter, the file or folder it came from, and what the figures call it."""

    name: str
    path: Path
    adapter: Adapter


def load_named(paths: Sequence[str], base: Base | None = None) -> list[Named]:
    """The adapters at these paths.

    Raises:
      InputError: see `load_adapter`; or a path is given twice, or can be none.
    """
    found = [Path(path) for path in paths]
    for path in found:
        # Raises for a loop of links or an overlong name, of which no short name can be made.
        exists(path)
    names = short_names(found)
    return [Named(name, path, load_adapter(path, base)) for name, path in zip(names, found, strict=True)]


def short_names(paths: Sequence[Path]) -> list[str]:
    """For every path the shortest end of it that no other has, without what all end with, and without "adapter".

    So runs/a/adapter.safetensors and runs/b/adapter.safetensors are a and b.

    Raises:
      InputError: a path is given twice.
    """
    every = [path.resolve() for path in paths]
    for path, resolved in zip(paths, every, strict=True):
        if every.count(resolved) > 1:
            raise InputError(f"{path} is given twice; an adapter is compared with others")
    ends = [[*path.parent.parts[1:], path.name if path.is_dir() else path.stem] for path in every]
    ends = [end[:-1] if end[-1] == "adapter" and len(end) > 1 else end for end in ends]
    while len(ends) > 1 and all(len(end) > 1 and end[-1] == ends[0][-1] for end in ends):
        ends = [end[:-1] for end in ends]
    # Some may differ in what comes after the last dot alone.
    whole = [list(path.parts[1:]) for path in every]
    for parts, least in ((ends, 1), (whole, 2)):
        for length in range(least, max(map(len, parts)) + 1):
            names = ["/".join(part[-length:]) for part in parts]
            if len({*names, BASE}) > len(names):
                return names
    return [str(path) for path in every]


def file_names(prefix: str, named: Sequence[Named]) -> list[str]:
    """A name for a file of each adapter: letters, digits, dots and dashes."""
    return [f"{prefix}_{i}_{re.sub(r'[^A-Za-z0-9.-]+', '_', one.name).strip('_')}" for i, one in enumerate(named, 1)]


def prompt_format(named: Sequence[Named], template: str, system: str | None) -> tuple[str, str | None]:
    """The template and system prompt that all are looked at with.

    Args:
      template: one of `TEMPLATES`, with the system prompt recorded with it; or "auto": what the adapters' files record.
        Those that record nothing, as other projects' files, are looked at as the others are.
      system: takes the place of what is recorded.

    Raises:
      InputError: the files record different ones, or with "auto" none at all (see `prompt_template`).
    """
    recorded = {}
    for one in named:
        found = recorded_prompt_format(one.path)
        if found.get("template"):
            recorded.setdefault((str(found["template"]), found.get("system")), one)
    if template != "auto":
        systems = [recorded_system for name, recorded_system in recorded if name == template]
        return template, systems[0] if system is None and len(systems) == 1 else system
    if len(recorded) > 1:
        (first, second), formats = list(recorded.values())[:2], list(recorded)
        raise InputError(
            f"{first.path} was trained with the prompts of {_words(*formats[0])} and {second.path} with those of "
            f"{_words(*formats[1])}; name the one to look at them with: --template=… [--system=…]"
        )
    for name, recorded_system in recorded:
        return name, recorded_system if system is None else system
    return prompt_template(template, {}, adapter=str(named[0].path), option="--template", others=("chat",)), system


def _words(template: str, system: str | None) -> str:
    return f"{template!r}" if system is None else f"{template!r} with the system prompt {system!r}"

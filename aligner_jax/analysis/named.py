"""Loads the adapters of an analysis and gives them short, distinct names."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from aligner_jax.data.prompt_format import PromptFormat
from aligner_jax.errors import InputError
from aligner_jax.files.content import exists, is_folder
from aligner_jax.peft import Adapter
from aligner_jax.peft.artifact import Artifact, read_artifact
from aligner_jax.peft.location import ADAPTER_FILE
from aligner_jax.weights.base import Base

BASE = "base"
"""Name of the base in figures; no adapter has it."""


@dataclasses.dataclass(frozen=True)
class Named:
    """An adapter with its name in figures, its file or folder, and the content of that; None if it has no file."""

    name: str
    path: Path
    adapter: Adapter
    artifact: Artifact | None = None

    @property
    def prompt_format(self) -> PromptFormat | None:
        """Prompt format of the adapter's training data; see `Artifact.prompt_format`."""
        return None if self.artifact is None else self.artifact.prompt_format


def load_named(paths: Sequence[str], base: Base | None = None) -> list[Named]:
    """Loads the adapters at these paths. The folder of a run stands for its adapter, or for all those of a sweep.

    Raises:
      InputError: see `read_artifact`; or a path is given twice or is not a valid path.
    """
    for path in paths:
        # Raises for a loop of links or an overlong name, which `short_names` could not resolve.
        exists(path)
    found = [one for path in paths for one in _with_sweeps(Path(path))]
    names = short_names(found)
    named = []
    for name, path in zip(names, found, strict=True):
        artifact = read_artifact(path, base)
        named.append(Named(name, artifact.path, artifact.adapter, artifact))
    return named


def _with_sweeps(path: Path) -> list[Path]:
    """Returns the adapters of a sweep for its folder, else the path itself."""
    if is_folder(path) and not exists(path / ADAPTER_FILE):
        return sorted(path.glob("adapter_*.safetensors"), key=lambda one: (len(one.name), one.name)) or [path]
    return [path]


def short_names(paths: Sequence[Path]) -> list[str]:
    """Returns a name for every path: the shortest ends of the paths that are distinct.

    Suffixes, a last part "adapter", and last parts that all paths share are left out: runs/a/adapter.safetensors and
    runs/b/adapter.safetensors become a and b.

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
    # Paths may differ only in their suffixes, so whole paths are tried next.
    whole = [list(path.parts[1:]) for path in every]
    for parts, least in ((ends, 1), (whole, 2)):
        for length in range(least, max(map(len, parts)) + 1):
            names = ["/".join(part[-length:]) for part in parts]
            if len({*names, BASE}) > len(names):
                return names
    return [str(path) for path in every]


def file_names(prefix: str, named: Sequence[Named]) -> list[str]:
    """Returns a file name for every adapter, of letters, digits, dots, dashes and underscores."""
    return [f"{prefix}_{i}_{re.sub(r'[^A-Za-z0-9.-]+', '_', one.name).strip('_')}" for i, one in enumerate(named, 1)]

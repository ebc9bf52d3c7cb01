"""Looks at a user's task files before the harness does, which passes over damaged ones without a word."""

from pathlib import Path
from typing import Any

from aligner_jax.errors import InputError
from aligner_jax.files.content import MEBIBYTE, read_text

MOST_VALUES = 10**6
"""Values in a task file, counted where they are repeated by aliases too: the harness copies and prints them all."""


def damaged_files(folder: str) -> list[str]:
    """Returns a clause about each task file (`*.yaml`) of a folder that is no YAML object.

    Raises:
      InputError: the aliases of a file unfold to more than `MOST_VALUES` values.
    """
    return [
        f"{path} is passed over: {why}" for path in sorted(Path(folder).glob("**/*.yaml")) if (why := _damage(path))
    ]


def _damage(path: Path) -> str | None:
    import yaml  # comes with lm-eval

    try:
        # The text's structure alone: nothing is built, so neither tags nor repeated aliases do anything.
        root = yaml.compose(read_text(path, most=MEBIBYTE), Loader=yaml.SafeLoader)
        count = _unfolded(root, {})
    except (yaml.YAMLError, RecursionError, InputError) as error:
        return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
    if count > MOST_VALUES:
        raise InputError(
            f"{path}: its aliases unfold to {count:.1e} values, but a task file has at most {MOST_VALUES:,}"
        )
    return None if isinstance(root, yaml.MappingNode) else "it is not a YAML object"


def _unfolded(node: Any, counts: dict[int, float]) -> float:
    """The number of values below a node, each alias counted with all that it stands for."""
    if node is None or not isinstance(node.value, list):
        return 1
    if id(node) not in counts:
        # An alias of what it is part of has no end.
        counts[id(node)] = float("inf")
        parts = (part for item in node.value for part in (item if isinstance(item, tuple) else (item,)))
        counts[id(node)] = 1 + sum(_unfolded(part, counts) for part in parts)
    return counts[id(node)]

"""Checks a user's task files before lm-evaluation-harness reads them, which skips damaged files silently."""

from pathlib import Path
from typing import Any

from aligner_jax.errors import InputError
from aligner_jax.files.content import MEBIBYTE, read_text

MAX_VALUES = 10**6
"""Largest number of values in a task file, with aliases expanded: the harness copies and prints all of them."""


def damaged_files(folder: str) -> list[str]:
    """Returns one clause, for error messages, per task file (`*.yaml`) of a folder that is not a YAML object.

    Raises:
      InputError: a file has more than `MAX_VALUES` values with its aliases expanded.
    """
    return [
        f"{path} is passed over: {why}" for path in sorted(Path(folder).glob("**/*.yaml")) if (why := _damage(path))
    ]


def _damage(path: Path) -> str | None:
    import yaml  # comes with lm-eval

    try:
        # Only the node graph is composed, and no object constructed, so tags and aliases are harmless.
        root = yaml.compose(read_text(path, most=MEBIBYTE), Loader=yaml.SafeLoader)
        count = _unfolded(root, {})
    except (yaml.YAMLError, RecursionError, InputError) as error:
        return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
    if count > MAX_VALUES:
        raise InputError(
            f"{path}: its aliases unfold to {count:.1e} values, but a task file has at most {MAX_VALUES:,}"
        )
    return None if isinstance(root, yaml.MappingNode) else "it is not a YAML object"


def _unfolded(node: Any, counts: dict[int, float]) -> float:
    """Returns the number of values of a node with its aliases expanded; infinite for an alias within its own value."""
    if node is None or not isinstance(node.value, list):
        return 1
    if id(node) not in counts:
        # Infinite until the count is known, so that an alias within its own value has no finite count.
        counts[id(node)] = float("inf")
        parts = (part for item in node.value for part in (item if isinstance(item, tuple) else (item,)))
        counts[id(node)] = 1 + sum(_unfolded(part, counts) for part in parts)
    return counts[id(node)]

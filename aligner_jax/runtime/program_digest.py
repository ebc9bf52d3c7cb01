"""Identity of a program before it is compiled, and the folders in which results of its compilation are kept."""

import hashlib
import importlib.metadata
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

_COMPILERS = (
    "jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "jax-cuda12-pjrt", "jax-cuda13-plugin", "jax-cuda13-pjrt",
)  # fmt: skip
"""Packages whose versions decide what a lowered program is compiled to."""

_LOCATION = re.compile(r'(?:^(#loc\d*) = )?loc\((?:"([^"]*)"[()]|(#loc\d*)\))', re.MULTILINE)
"""A location in a lowered text: the definition of an alias, a name, or a use of an alias."""


def digest_of(lowered: jax.stages.Lowered, devices: Sequence[Any]) -> str:
    """Returns the SHA-256 of everything that the compiled program depends on."""
    client = devices[0].client
    return hashlib.sha256(
        "\n".join(
            [
                lowered.as_text(), *_operation_names(lowered.as_text(debug_info=True)),
                *map(str, devices), devices[0].device_kind, client.platform_version, str(client.device_count()),
                *(f"{name} {_version(name)}" for name in _COMPILERS),
                *(f"{name} {os.environ.get(name)}" for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")),
                *(f"{name} {value}" for name, value in sorted(jax.config.values.items()) if "cache" not in name),
            ]
        ).encode()
    ).hexdigest()  # fmt: skip


def _operation_names(text: str) -> list[str]:
    """Returns the name of every operation in a lowered text, in order; "" for those without a name.

    The compiled text repeats the names. Source files and line numbers are left out.
    """
    found = [match.groups(default="") for match in _LOCATION.finditer(text)]
    names = {alias: name for alias, name, _ in found if alias}
    return [name or names.get(used, "") for alias, name, used in found if not alias]


def cache_folder(name: str) -> Path | None:
    """Returns a folder of this name in JAX's compilation cache; None if the cache is disabled or not on a disk."""
    folder = jax.config.jax_compilation_cache_dir
    if not folder or "://" in folder or not jax.config.jax_enable_compilation_cache:
        return None
    return Path(folder) / name


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None

"""Identity of a program before it is compiled, and the folders in which results of its compilation are kept."""

import hashlib
import importlib.metadata
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

_NAMES = re.compile(r'loc\("([^"]*)"[()]')
"""Names of operations, which the compiled text repeats. Source files and line numbers are left out."""


def digest_of(lowered: jax.stages.Lowered, devices: Sequence[Any]) -> str:
    """Returns the SHA-256 of everything that the compiled program depends on."""
    text = lowered.as_text(debug_info=True)
    client = devices[0].client
    return hashlib.sha256(
        "\n".join(
            [
                lowered.as_text(), *dict.fromkeys(_NAMES.findall(text)),
                *map(str, devices), devices[0].device_kind, client.platform_version, str(client.device_count()),
                *(f"{name} {_version(name)}" for name in ("jaxlib", "libtpu")),
                *(f"{name} {os.environ.get(name)}" for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")),
                *(f"{name} {value}" for name, value in sorted(jax.config.values.items()) if "cache" not in name),
            ]
        ).encode()
    ).hexdigest()  # fmt: skip


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

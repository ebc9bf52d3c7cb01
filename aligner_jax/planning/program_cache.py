"""Programs that the TPU compiler has made, remembered on disk: what the planner reads of each, and no code.

A program takes the compiler up to a minute. It is the same for the same lowered text, devices and compiler, so these
are what an entry is named by; a program that has changed is compiled again. Entries are beside those of JAX's own cache
of compiled programs and follow its settings; JAX's own cannot be read back for devices that are not here.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from aligner_jax.errors import InputError
from aligner_jax.runtime.files import write_atomically

_NAMES = re.compile(r'loc\("([^"]*)"[()]')
"""Names of operations, which the compiled text repeats; files and lines are left out."""


@dataclasses.dataclass(frozen=True)
class Program:
    """One compiled program, on one device.

    Attributes:
      text: scheduled HLO.
      peak_bytes: the most memory in use.
      temporary_bytes: the most that lives within the program.
      output_specs: for each axis of each result the mesh axes that split it: a name, a list of names or None.
      seconds: how long compiling took.
    """

    text: str
    peak_bytes: int
    temporary_bytes: int
    output_specs: list[list]
    seconds: float


@dataclasses.dataclass(frozen=True)
class TooLarge:
    """A program that the compiler refused because it needs more memory than there is."""

    message: str
    seconds: float


_KINDS = {"program": Program, "too large": TooLarge}


def digest_of(lowered: jax.stages.Lowered, devices: Sequence[Any]) -> str:
    """Returns the SHA-256 of all that decides what the compiler makes of a lowered function for these devices."""
    text = lowered.as_text(debug_info=True)
    client = devices[0].client
    return hashlib.sha256(
        "\n".join(
            [
                lowered.as_text(), *dict.fromkeys(_NAMES.findall(text)),
                *map(str, devices), devices[0].device_kind, client.platform_version, str(client.device_count()),
                *(f"{name} {importlib.metadata.version(name)}" for name in ("jaxlib", "libtpu")),
                *(f"{name} {os.environ.get(name)}" for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")),
                *(f"{name} {value}" for name, value in sorted(jax.config.values.items()) if "cache" not in name),
            ]
        ).encode()
    ).hexdigest()  # fmt: skip


def load(digest: str) -> Program | TooLarge | None:
    """Returns an entry; None where there is none, or one that is damaged."""
    folder = _folder()
    if folder is None:
        return None
    try:
        kind, fields = json.loads(zlib.decompress((folder / digest).read_bytes()))
        return _KINDS[kind](**fields)
    except (OSError, zlib.error, ValueError, TypeError, KeyError):
        return None


def save(digest: str, program: Program | TooLarge) -> None:
    """Stores an entry for later runs; a disk that takes none costs them a compilation."""
    folder = _folder()
    if folder is None:
        return
    kind = next(name for name, each in _KINDS.items() if type(program) is each)
    content = zlib.compress(json.dumps([kind, dataclasses.asdict(program)]).encode())
    with contextlib.suppress(InputError):
        write_atomically(folder / digest, content)


def _folder() -> Path | None:
    folder = jax.config.jax_compilation_cache_dir
    if not folder or "://" in folder or not jax.config.jax_enable_compilation_cache:
        return None
    return Path(folder) / "tpu"

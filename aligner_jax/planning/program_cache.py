"""Disk cache of programs compiled for TPUs that are not attached: their HLO and memory figures, without the code.

Compiling a program takes up to a minute, and the result depends only on the lowered text, the devices and the compiler.
An entry is named by the SHA-256 of these, so a changed program is compiled again. Entries lie in the folder `tpu` of
JAX's compilation cache and follow its settings. JAX itself cannot load programs for devices that are not attached.
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

_LOCATION = re.compile(r'(?:^(#loc\d*) = )?loc\((?:"([^"]*)"[()]|(#loc\d*)\))', re.MULTILINE)
"""A location in a lowered text: the definition of an alias, a name, or a use of an alias."""


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program. Sizes are per device, in bytes.

    Attributes:
      text: scheduled HLO.
      peak_bytes, temporary_bytes: see `compiled.Compiled`.
      output_specs: partition specs of the results, as lists.
      seconds: compile time.
    """

    text: str
    peak_bytes: int
    temporary_bytes: int
    output_specs: list[list]
    seconds: float


@dataclasses.dataclass(frozen=True)
class TooLarge:
    """A program that needs more memory than a device has.

    Attributes:
      message: error message of the compiler.
      seconds: compile time.
    """

    message: str
    seconds: float


_KINDS = {"program": Program, "too large": TooLarge}


def digest_of(lowered: jax.stages.Lowered, devices: Sequence[Any]) -> str:
    """Returns the SHA-256 of everything that the compiled program depends on."""
    client = devices[0].client
    return hashlib.sha256(
        "\n".join(
            [
                lowered.as_text(), *_operation_names(lowered.as_text(debug_info=True)),
                *map(str, devices), devices[0].device_kind, client.platform_version, str(client.device_count()),
                *(f"{name} {importlib.metadata.version(name)}" for name in ("jaxlib", "libtpu")),
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


def load(digest: str) -> Program | TooLarge | None:
    """Returns the entry with this digest, or None if it is missing or damaged."""
    folder = _folder()
    if folder is None:
        return None
    try:
        kind, fields = json.loads(zlib.decompress((folder / digest).read_bytes()))
        return _KINDS[kind](**fields)
    except (OSError, zlib.error, ValueError, TypeError, KeyError):
        return None


def save(digest: str, program: Program | TooLarge) -> None:
    """Writes an entry. Does nothing if it cannot be written: a later run then compiles again."""
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

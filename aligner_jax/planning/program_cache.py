"""Disk cache of programs compiled for TPUs that are not attached: their HLO and memory figures, without the code.

Compiling a program takes up to a minute, and the result depends only on the lowered text, the devices and the compiler.
An entry is named by the digest of these, so a changed program is compiled again. Entries lie in the folder `tpu` of
JAX's compilation cache and follow its settings. JAX itself cannot load programs for devices that are not attached.
"""

import contextlib
import dataclasses
import json
import zlib

from aligner_jax.errors import InputError
from aligner_jax.runtime.files import write_atomically
from aligner_jax.runtime.program_digest import cache_folder


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


def load(digest: str) -> Program | TooLarge | None:
    """Returns the entry with this digest, or None if it is missing or damaged."""
    folder = cache_folder("tpu")
    if folder is None:
        return None
    try:
        kind, fields = json.loads(zlib.decompress((folder / digest).read_bytes()))
        return _KINDS[kind](**fields)
    except (OSError, zlib.error, ValueError, TypeError, KeyError):
        return None


def save(digest: str, program: Program | TooLarge) -> None:
    """Writes an entry. Does nothing if it cannot be written: a later run then compiles again."""
    folder = cache_folder("tpu")
    if folder is None:
        return
    kind = next(name for name, each in _KINDS.items() if type(program) is each)
    content = zlib.compress(json.dumps([kind, dataclasses.asdict(program)]).encode())
    with contextlib.suppress(InputError):
        write_atomically(folder / digest, content)

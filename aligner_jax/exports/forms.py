"""The forms in which adapters leave this project, by the value of the flag --to."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

from aligner_jax.exports.gguf import FILE, export_gguf
from aligner_jax.exports.hf import export_hf
from aligner_jax.exports.job import Job
from aligner_jax.exports.orbax import export_orbax
from aligner_jax.exports.peft import export_peft


@dataclasses.dataclass(frozen=True)
class ExportForm:
    """One form of an export.

    Attributes:
      write: writes an export into an existing empty folder; returns sentences for the user.
      is_base: True if the result is a folded base, which this project can read again.
      file: file of the folder that is that base; empty if it is the folder.
    """

    write: Callable[[Job, Path], list[str]]
    is_base: bool = True
    file: str = ""


EXPORT_FORMS: Mapping[str, ExportForm] = {
    "hf": ExportForm(export_hf),
    "gguf": ExportForm(export_gguf, file=FILE),
    "orbax": ExportForm(export_orbax),
    "peft": ExportForm(export_peft, is_base=False),
}

"""Refusal to write over what is there already."""

from pathlib import Path

from aligner_jax.errors import InputError
from aligner_jax.files.content import exists


def check_new(path: Path, *, overwrite: bool) -> None:
    """Refuses a path that exists, unless `overwrite`. To be called before slow work.

    Raises:
      InputError: the path exists; the message names it and the flag --overwrite.
    """
    if not overwrite and exists(path):
        raise InputError(f"{path} exists already: give another name, or add --overwrite to replace it")

"""Writes a folded base as an Orbax folder, which every command of this project takes as --base."""

from pathlib import Path

from aligner_jax.exports.folded import folded_parts
from aligner_jax.exports.job import Job
from aligner_jax.weights.orbax import fill_orbax


def export_orbax(job: Job, folder: Path) -> list[str]:
    """Writes the weights and the tokenizer's files.

    Args:
      job: adapters that can be folded, over their base.
      folder: existing empty folder.

    Returns:
      Sentences for the user.

    Raises:
      InputError: an adapter cannot be folded (`Unfoldable`), or the base's files cannot be read.
    """
    files = {} if job.base.tokenizer is None else job.base.tokenizer_files()
    fill_orbax(folder, job.fold.folded_config, folded_parts(job.base, job.fold, job.dtype), job.dtype, files)
    return []

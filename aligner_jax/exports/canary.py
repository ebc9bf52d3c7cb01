"""Canaries of exports: of a folder, canary.json, and of an adapter whose file has none."""

from collections.abc import Sequence
from pathlib import Path

from aligner_jax.errors import InputError
from aligner_jax.exports.job import Job
from aligner_jax.exports.rounding import measure
from aligner_jax.exports.source import StoredBase, load_whole
from aligner_jax.files.content import MEBIBYTE, is_file
from aligner_jax.files.fields import Fields
from aligner_jax.files.json_text import read_object
from aligner_jax.peft.artifact import Artifact
from aligner_jax.peft.canary import Canary, candidates, choose, parse_canary
from aligner_jax.peft.canary_logits import compute_canary

CANARY_FILE = "canary.json"


NO_BASE = "no canary: the adapter's file has none, as files of earlier releases; add --base=PATH, and it is computed"
NO_TOKENS = "no canary: logits are not finite, or no probable token has a text of its own"


def measure_export(
    job: Job, artifacts: Sequence[Artifact], written: StoredBase | None = None
) -> tuple[float | None, Canary | None]:
    """Returns the largest difference of logits that rounding made, and the canary of adapters.

    A base is read a layer at a time, but loaded as a whole if the adapter cannot be folded.

    Args:
      job: the adapters and their base; an adapter that cannot be folded is the only one.
      artifacts: files of the adapters. Prompts are in the format that the first one records.
      written: the base into which they were folded, if that was written; else there is no difference.

    Returns:
      The difference, see `rounding.measure`, and the canary, which is None if there is none (`NO_TOKENS`).
    """
    try:
        prompt_format = artifacts[0].prompt_format
    except InputError:
        # The adapter is exported without it, too.
        prompt_format = None
    if not job.can_be_folded:
        (adapter,) = job.adapters
        return None, compute_canary(load_whole(job.base), adapter, prompt_format)
    config = job.base.config
    rows = candidates(job.base.tokenizer, prompt_format, config.vocab_size, config.context_length)
    found = measure(job, written, rows)
    return found.difference, choose(rows, found.base_bv, found.adapted_bv, job.base.tokenizer, "float32")


def write_canary(folder: Path, canary: Canary) -> None:
    """Writes the canary of an export into its folder."""
    (folder / CANARY_FILE).write_text(canary.as_json() + "\n", encoding="utf-8")


def read_canary(folder: Path) -> Canary | None:
    """Reads the canary of an exported folder; None if it has none.

    Raises:
      InputError: the file is damaged.
    """
    path = folder / CANARY_FILE
    return parse_canary(Fields(read_object(path, most=MEBIBYTE), path)) if is_file(path) else None

"""The canary of an exported folder, canary.json, which `aligner_jax.verify` reads."""

from collections.abc import Sequence
from pathlib import Path

from aligner_jax.errors import InputError
from aligner_jax.exports.job import Job
from aligner_jax.files.content import MEBIBYTE, is_file
from aligner_jax.files.fields import Fields
from aligner_jax.files.json_text import read_object
from aligner_jax.peft.artifact import Artifact
from aligner_jax.peft.canary import Canary, Row, candidates, parse_canary

CANARY_FILE = "canary.json"


def canary_rows(job: Job, artifacts: Sequence[Artifact]) -> list[Row]:
    """Returns prompts for the canary of an export, in the format that its first adapter records."""
    config = job.base.config
    try:
        prompt_format = artifacts[0].prompt_format if artifacts else None
    except InputError:
        # The adapter is exported without it, too.
        prompt_format = None
    return candidates(job.base.tokenizer, prompt_format, config.vocab_size, config.context_length)


def write_canary(folder: Path, canary: Canary | None) -> None:
    """Writes the canary of an export into its folder; nothing if there is none, as of logits that are not finite."""
    if canary is not None:
        (folder / CANARY_FILE).write_text(canary.as_json() + "\n", encoding="utf-8")


def read_canary(folder: Path) -> Canary | None:
    """Reads the canary of an exported folder; None if it has none.

    Raises:
      InputError: the file is damaged.
    """
    path = folder / CANARY_FILE
    return parse_canary(Fields(read_object(path, most=MEBIBYTE), path)) if is_file(path) else None

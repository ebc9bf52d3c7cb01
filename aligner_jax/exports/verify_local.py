"""Computes the log-probabilities of a canary here, or in transformers by another interpreter."""

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from aligner_jax.errors import InputError, one_line
from aligner_jax.exports.source import open_stored
from aligner_jax.exports.streamed import streamed_next_logits
from aligner_jax.peft import Adapter
from aligner_jax.peft.canary import Canary, Found, Row, found_in
from aligner_jax.peft.canary_logits import next_logits
from aligner_jax.runtime.files import reason
from aligner_jax.weights.base import Base

PEER_VARIABLE = "PEER_PYTHON"
_PEER_SECONDS = 3600
_MAX_SAID = 300

_PEER = """
import json, os, sys
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")
import numpy, torch, transformers
folder, rows, to = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
with torch.no_grad():
    logits = [model(torch.tensor([row])).logits[0, -1].float().numpy() for row in rows]
numpy.save(to, numpy.stack(logits))
"""


def found_here(canary: Canary, exported: str) -> list[Found]:
    """Returns the log-probabilities of an exported base, which is read one layer at a time.

    Raises:
      InputError: there is no base of that name, or its files cannot be read.
    """
    return found_in(canary, streamed_next_logits(open_stored(exported), _rows(canary)))


def found_with_adapter(canary: Canary, base: Base, adapter: Adapter) -> list[Found]:
    """Returns the log-probabilities of a base with an adapter. Raises InputError if the base lacks a token."""
    return found_in(canary, next_logits(base.params, adapter, _rows(canary), base.config))


def found_in_transformers(canary: Canary, folder: Path, python: str) -> list[Found]:
    """Returns the log-probabilities that transformers computes in float32 on the CPU.

    Args:
      canary: the canary.
      folder: folder of a Hugging Face model.
      python: interpreter of an environment with torch and transformers.

    Raises:
      InputError: the interpreter does not run, or transformers does not load the model.
    """
    rows = json.dumps([row.ids for row in _rows(canary)])
    with tempfile.TemporaryDirectory() as scratch:
        to = Path(scratch) / "logits.npy"
        try:
            ended = subprocess.run(
                [python, "-c", _PEER, str(folder.resolve()), rows, str(to)],
                capture_output=True, text=True, errors="replace", timeout=_PEER_SECONDS, check=False, cwd=scratch,
                env={name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")},
            )  # fmt: skip
        except OSError as error:
            raise InputError(f"{PEER_VARIABLE}={python} does not run: {reason(error)}") from None
        except subprocess.TimeoutExpired:
            raise InputError(f"{PEER_VARIABLE}={python} did not end within {_PEER_SECONDS:,} seconds") from None
        if ended.returncode or not to.exists():
            said = ([line for line in ended.stderr.splitlines() if line.strip()] or ["nothing"])[-1]
            raise InputError(
                f"transformers in {PEER_VARIABLE}={python} cannot compute {folder}: {one_line(said, _MAX_SAID)}"
            )
        return found_in(canary, np.load(to, allow_pickle=False))


def _rows(canary: Canary) -> Sequence[Row]:
    return [prompt.row for prompt in canary.prompts]

"""Runs whole trainings in this process, and writes their configs as files."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from aligner_jax.errors import InputError
from aligner_jax.peft import Adapter
from aligner_jax.runtime.config import parse_config
from aligner_jax.train import train


def run(settings: dict, workdir: Path) -> tuple[Adapter, str]:
    """Returns the adapter that a config gives, and the output."""
    screen = io.StringIO()
    adapter = train(parse_config(settings), workdir, Console(width=100, force_terminal=False, file=screen))
    return adapter, screen.getvalue()


def config_file(settings: dict, folder: Path) -> Path:
    """Writes a config, given as nested dicts, as a file for --config."""
    path = folder / "config.py"
    path.write_text(
        f"import ml_collections\n\n\ndef get_config():\n    return ml_collections.ConfigDict({settings!r})\n"
    )
    return path


def check_not_cut_short(settings: dict, workdir: Path) -> None:
    """Checks that a run with fewer steps than its workdir has is refused and changes no file of the workdir."""
    run({**settings, "steps": 4}, workdir)
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=r"^config\.steps is 3, but .*/checkpoints is at step 4 already$"):
        run({**settings, "steps": 3}, workdir)
    assert {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()} == before

"""A run's metrics in a project of Weights & Biases; a run that resumes goes on there."""

import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from aligner_jax.errors import InputError
from aligner_jax.files.content import exists
from aligner_jax.files.extras import pip_line
from aligner_jax.files.json_text import read_object
from aligner_jax.runtime.files import write_atomically

_RECORD = "wandb.json"
"""File of a workdir with the project and the id of its run."""


def import_wandb() -> ModuleType:
    """Returns the library. Raises InputError if it is not installed."""
    try:
        import wandb
    except ImportError:
        raise InputError(
            f"config.metrics.wandb names a project of Weights & Biases, whose library is missing: {pip_line('wandb')}"
        ) from None
    return wandb


class WandbRun:
    """A run at Weights & Biases. WANDB_MODE=offline keeps it in the workdir, for `wandb sync`."""

    def __init__(self, project: str, workdir: Path, *, resume_step: int, config: Mapping[str, Any]) -> None:
        """Begins a run, or goes on with that of the workdir.

        Args:
          project: name of the project.
          workdir: folder of the run; its name is that of the run, and it keeps the library's files.
          resume_step: step to resume after; at 0 a new run begins.
          config: the run's config as nested dicts.

        Raises:
          InputError: the library is not installed or refuses to begin, such as without a login.
        """
        wandb = import_wandb()
        path = workdir / _RECORD
        recorded = read_object(path) if resume_step and exists(path) else {}
        run_id = recorded.get("id") if recorded.get("project") == project else None
        if not isinstance(run_id, str):
            run_id = secrets.token_hex(4)
            write_atomically(path, json.dumps({"project": project, "id": run_id}, indent=2) + "\n")
        try:
            self._run = wandb.init(
                project=project, id=run_id, resume="allow", name=workdir.absolute().name, dir=str(workdir),
                config=dict(config), settings=wandb.Settings(silent=True, console="off"),
            )  # fmt: skip
        except wandb.Error as error:
            raise InputError(
                f"config.metrics.wandb: Weights & Biases does not begin a run ({error}); log in with `wandb login`, or "
                "set WANDB_MODE=offline"
            ) from None

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Sends the metrics of a step."""
        # A run that was killed takes steps again which are there already.
        if step >= self._run.step:
            self._run.log(dict(metrics), step=step)

    def close(self, *, failed: bool = False) -> None:
        """Ends the process's part of the run, once everything is sent or on disk."""
        self._run.finish(exit_code=1 if failed else 0)

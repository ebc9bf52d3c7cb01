"""TensorBoard event files of a run: metrics as scalars, and the config as hyperparameters and as a text."""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]

_HYPERPARAMETER_METRICS = ("loss", "heldout_loss")


class EventFiles:
    """Writes the event files of a workdir. Its methods raise OSError if a file cannot be written."""

    def __init__(self, workdir: Path, *, resume_step: int, config: Mapping[str, Any] | None = None) -> None:
        """Opens a new event file.

        Args:
          workdir: folder of the run.
          resume_step: step to resume after; TensorBoard hides later steps of earlier files.
          config: fields of the run's config, as nested dicts; None writes no hyperparameters.
        """
        # Not SummaryWriter: its thread dies on a full disk, and then closing it waits for ever.
        self._events = EventsWriter(str(workdir / "events"), f".{os.getpid()}.{resume_step}")
        if resume_step:
            restart = Event(wall_time=time.time(), step=resume_step + 1)
            restart.session_log.status = SessionLog.START
            self._events.write_event(restart)
        if config is not None:
            self._write_hyperparameters(config, resume_step)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes metrics as scalars of a step."""
        for name, value in metrics.items():
            self._write(step, summary.scalar(name, value))
        self._events.flush()

    def close(self) -> None:
        """Closes the file."""
        self._events.close()

    def _write(self, step: int, content: Any) -> None:
        self._events.write_event(Event(wall_time=time.time(), step=step, summary=content))

    def _write_hyperparameters(self, config: Mapping[str, Any], step: int) -> None:
        experiment, start, _ = summary.hparams(dict(flat(config)), dict.fromkeys(_HYPERPARAMETER_METRICS, 0.0))
        as_text = "    " + json.dumps(config, indent=2).replace("\n", "\n    ")
        for content in (experiment, start, summary.text("config", as_text)):
            self._write(step, content)
        self._events.flush()


def flat(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, bool | int | float | str]]:
    """Returns the fields of nested dicts by dotted name, those without a value left out and lists as text.

    Bytes of paths that are not UTF-8 are escaped, since TensorBoard's texts cannot hold them.
    """
    found: list[tuple[str, bool | int | float | str]] = []
    for name, value in config.items():
        if isinstance(value, Mapping):
            found += flat(value, f"{prefix}{name}.")
        elif value is not None and value not in ((), []):
            number = isinstance(value, bool | int | float)
            found.append(
                (f"{prefix}{name}", value if number else str(value).encode(errors="backslashreplace").decode())
            )
    return found

"""Metrics of a run on disk: one JSON object per line, and TensorBoard event files."""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]

from aligner_jax.errors import InputError
from aligner_jax.files.content import decode_text, exists, open_file
from aligner_jax.files.fields import Fields
from aligner_jax.files.json_text import parse_object
from aligner_jax.runtime.distributed import is_first
from aligner_jax.runtime.files import reason, write_atomically
from aligner_jax.runtime.nonfinite import finite_or_none


class MetricsWriter:
    """Appends metrics to `metrics.jsonl` and to the event files of a workdir. A context manager.

    Only process 0 writes; in the others the same calls do nothing.
    """

    def __init__(self, workdir: str | Path, *, resume_step: int = 0) -> None:
        """Opens the files.

        Args:
          workdir: folder of the run; made if it does not exist.
          resume_step: step to resume after. Lines of later steps are dropped, since the run takes those steps again,
            and so is an incomplete last line of a killed process. TensorBoard hides the later steps too.

        Raises:
          InputError: a file cannot be read or written, or a line of metrics.jsonl holds no metrics; names the line.
        """
        self.path = Path(workdir) / "metrics.jsonl"
        self._file = self._events = None
        if not is_first():
            return
        self._keep_until(resume_step)
        with self._failure_is_one_sentence():
            self._file = self.path.open("a", encoding="utf-8")
            # Not SummaryWriter: its thread dies on a full disk, and then closing it waits for ever.
            self._events = EventsWriter(str(self.path.parent / "events"), f".{os.getpid()}.{resume_step}")
            if resume_step:
                restart = Event(wall_time=time.time(), step=resume_step + 1)
                restart.session_log.status = SessionLog.START
                self._events.write_event(restart)

    def write(self, step: int, **metrics: float) -> None:
        """Writes one line: {"step": step, "loss": …}. Non-finite values become null, since JSON cannot hold them.

        Raises:
          InputError: the line cannot be written.
        """
        if self._file is None or self._events is None:
            return
        with self._failure_is_one_sentence():
            self._file.write(json.dumps(finite_or_none({"step": step, **metrics})) + "\n")
            self._file.flush()
            for name, value in metrics.items():
                point = Event(wall_time=time.time(), step=step, summary=summary.scalar(name, value))
                self._events.write_event(point)
            self._events.flush()

    def close(self) -> None:
        """Closes the files."""
        # Lines were flushed when they were written, and failures were reported then.
        for file in (self._file, self._events):
            with contextlib.suppress(OSError):
                if file is not None:
                    file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _failure_is_one_sentence(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(f"metrics cannot be written in {self.path.parent}: {reason(error)}") from error

    def _keep_until(self, step: int) -> None:
        if not exists(self.path):
            with self._failure_is_one_sentence():
                self.path.parent.mkdir(parents=True, exist_ok=True)
            return
        kept, drops = [], False
        with open_file(self.path) as file, self._failure_is_one_sentence():
            for number, line in enumerate(file, 1):
                # A last line without line end is incomplete.
                stays = line.endswith(b"\n") and self._step_of(line, number) <= step
                drops |= not stays
                kept += [line] if stays else []
        if drops:
            write_atomically(self.path, b"".join(kept))

    def _step_of(self, line: bytes, number: int) -> int:
        where = f"{self.path}:{number}"
        try:
            return Fields(parse_object(decode_text(line, self.path), where), where).integer("step", least=0)
        except InputError:
            raise InputError(f"{where} is not a line of metrics; move the file away to go on") from None

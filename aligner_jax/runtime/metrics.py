"""Metrics of a run: one JSON object per line on disk, TensorBoard event files, and Weights & Biases if asked."""

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from aligner_jax.errors import InputError
from aligner_jax.files.content import decode_text, exists, open_file
from aligner_jax.files.fields import Fields
from aligner_jax.runtime.distributed import is_first
from aligner_jax.runtime.files import reason, write_atomically
from aligner_jax.runtime.history import FILE, parse_line
from aligner_jax.runtime.nonfinite import finite_or_none
from aligner_jax.runtime.tensorboard import EventFiles
from aligner_jax.runtime.wandb_run import WandbRun

_LONGEST_SECONDS = 1e12


class MetricsWriter:
    """Appends metrics to `metrics.jsonl` and to the event files of a workdir. A context manager.

    Only process 0 writes; in the others the same calls do nothing.
    """

    def __init__(
        self,
        workdir: str | Path,
        *,
        resume_step: int = 0,
        config: Mapping[str, Any] | None = None,
        wandb: str | None = None,
    ) -> None:
        """Opens the files.

        Args:
          workdir: folder of the run; made if it does not exist.
          resume_step: step to resume after. Lines of later steps are dropped, since the run takes those steps again,
            and so is an incomplete last line of a killed process. TensorBoard hides the later steps too.
          config: the run's config as nested dicts, which the trackers show as hyperparameters.
          wandb: project of Weights & Biases that the metrics go to as well.

        Raises:
          InputError: a file cannot be read or written, or a line of metrics.jsonl holds no metrics; names the line. Or
            Weights & Biases does not begin a run.
        """
        self.path = Path(workdir) / FILE
        self._file = self._events = self._wandb = None
        self._last: tuple[int, set[str]] = (0, set())
        self._before = 0.0
        if not is_first():
            return
        self._keep_until(resume_step)
        if wandb is not None:
            self._wandb = WandbRun(wandb, self.path.parent, resume_step=resume_step, config=config or {})
        with self._failure_is_one_sentence():
            self._file = self.path.open("a", encoding="utf-8")
            self._events = EventFiles(self.path.parent, resume_step=resume_step, config=config)
        self._began = time.monotonic() - self._before

    def write(self, step: int, **metrics: float) -> None:
        """Writes one line: {"step": step, "loss": …, "time": …, "seconds": …}.

        Non-finite values become null, since JSON cannot hold them. "time" is in seconds since 1970, UTC; "seconds" is
        the time that the run has taken until here, in all processes that took steps for it.

        Raises:
          InputError: the line cannot be written.
        """
        if self._file is None or self._events is None:
            return
        self._note(step, metrics)
        times = {"time": round(time.time(), 3), "seconds": round(time.monotonic() - self._began, 3)}
        with self._failure_is_one_sentence():
            self._file.write(json.dumps(finite_or_none({"step": step, **metrics, **times})) + "\n")
            self._file.flush()
            self._events.write(step, metrics)
        if self._wandb is not None:
            self._wandb.write(step, metrics)

    def holds(self, step: int, name: str) -> bool:
        """Returns True if a metric of a step is written, and the step is the last one."""
        last, names = self._last
        return step == last and name in names

    def close(self, *, failed: bool = False) -> None:
        """Closes the files; `failed` marks the run as failed at Weights & Biases."""
        # Lines were flushed when they were written, and failures were reported then.
        for file in (self._file, self._events):
            with contextlib.suppress(OSError):
                if file is not None:
                    file.close()
        if self._wandb is not None:
            self._wandb.close(failed=failed)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(failed=kind is not None)

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
                stays = line.endswith(b"\n") and self._takes(line, number, step)
                drops |= not stays
                kept += [line] if stays else []
        if drops:
            write_atomically(self.path, b"".join(kept))

    def _takes(self, line: bytes, number: int, most: int) -> bool:
        """Reads a line, and returns True if its step is at most `most`."""
        where = f"{self.path}:{number}"
        try:
            values = parse_line(decode_text(line, self.path), where)
            # Lines of earlier releases have no times.
            seconds = Fields(values, where).number("seconds", 0.0, least=0.0, most=_LONGEST_SECONDS)
        except InputError:
            raise InputError(f"{where} is not a line of metrics; move the file away to go on") from None
        if (step := values["step"]) > most:
            return False
        self._note(step, values)
        self._before = seconds
        return True

    def _note(self, step: int, names: Mapping[str, object]) -> None:
        last, known = self._last
        self._last = step, {*names, *(known if step == last else ())}

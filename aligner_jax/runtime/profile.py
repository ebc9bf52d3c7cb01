"""Traces of a few training steps, for XProf and TensorBoard."""

import contextlib
import os
from pathlib import Path
from types import TracebackType
from typing import Self

import jax
from rich.console import Console

from aligner_jax.errors import InputError
from aligner_jax.runtime import distributed
from aligner_jax.runtime.config import ProfileConfig
from aligner_jax.runtime.files import reason
from aligner_jax.runtime.workdir import Workdir


class Profile:
    """A `jax.profiler` trace of the steps that `config.profile` selects. A context manager; leaving it ends the trace.

    Attributes:
      folder: folder of the trace; separate for every process.
    """

    def __init__(self, config: ProfileConfig, workdir: Workdir, console: Console, *, first: int, last: int) -> None:
        """Prepares the trace; `turn` starts it.

        Args:
          first: last step already taken.
          last: last step of the run.
        """
        self._begin = first + config.after + 1
        self._end = min(self._begin + config.steps - 1, last)
        self._workdir, self._console = workdir, console
        self._is_on = False
        self.folder = Path(workdir.path) / "profile"
        if not distributed.is_alone():
            self.folder /= f"process_{jax.process_index()}"
        if config.steps and self._end < self._begin and first < last:
            console.out(f"profile: no step to trace, since config.profile.after is {config.after} of {last - first}")

    def turns_at(self, step: int) -> bool:
        """Returns True if the trace begins or ends before this step. No step may be running at that time."""
        return self._begin <= self._end and step in (self._begin, self._end + 1)

    def turn(self, step: int) -> None:
        """Begins or ends the trace, before a step for which `turns_at` is True.

        Raises:
          InputError: the trace cannot be taken or written.
        """
        if step == self._begin:
            self._start()
        else:
            self._stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._is_on:
            # An error that ends the run matters more than a failure of the trace.
            with contextlib.suppress(Exception) if kind else contextlib.nullcontext():
                self._stop(whole=kind is None)

    def _start(self) -> None:
        self._workdir.check()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            jax.profiler.start_trace(os.fspath(self.folder))
        except (OSError, jax.errors.JaxRuntimeError) as error:
            raise InputError(f"a trace cannot be written to {self.folder}: {reason(error)}") from error
        except RuntimeError as error:
            # The profiler itself raises a plain RuntimeError if it is active.
            raise InputError(
                f"config.profile.steps is {self._end - self._begin + 1}, but this process is already taking another "
                "trace; end that one first, or set config.profile.steps=0"
            ) from error
        self._is_on = True

    def _stop(self, *, whole: bool = True) -> None:
        self._is_on = False
        try:
            jax.profiler.stop_trace()
        except (OSError, RuntimeError, ValueError) as error:
            raise InputError(f"a trace cannot be written to {self.folder}: {reason(error)}") from error
        last = f"to {self._end}" if whole else "on"
        self._console.out(f"profile: {self.folder}, steps {self._begin} {last}")

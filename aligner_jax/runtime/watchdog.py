"""Watchdog: ends a run that waits too long, for a stalled input or a hanging peer, and names the wait."""

import math
import sys
import threading
from typing import NamedTuple, Self

from aligner_jax.runtime.config import StallConfig
from aligner_jax.runtime.exit import STALLED, at_once


class _Wait(NamedTuple):
    what: str
    limit: float
    field: str


class Watchdog:
    """A context manager that ends the process with status `exit.STALLED` if a single wait is too long.

    Time in which the process itself is stopped does not count.
    """

    def __init__(self, stall: StallConfig, *, ends_process: bool = True) -> None:
        """Takes the limits from the config; without `ends_process` a wait that is too long is only told on stderr."""
        self._stall, self._ends_process = stall, ends_process
        self._wait: _Wait | None = None
        self._closed = threading.Event()
        limits = [limit for limit in (stall.seconds, stall.compile_seconds) if limit]
        self._tick = min([1.0, *(limit / 10 for limit in limits)])
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True) if limits else None

    def waiting_for(self, what: str, *, compiles: bool = False) -> None:
        """Starts a new wait, which ends the previous one.

        Args:
          what: object of the wait for the error message, as in "step 3".
          compiles: True if the wait may include a compilation, which has a separate limit.
        """
        limit, field = (
            (self._stall.compile_seconds, "compile_seconds") if compiles else (self._stall.seconds, "seconds")
        )
        self._wait = _Wait(what, limit, field) if limit else None

    def __enter__(self) -> Self:
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        # Counts ticks instead of clock time, since none occur while the process is stopped.
        seen, ticks = self._wait, 0
        while not self._closed.wait(self._tick):
            if self._wait is not seen:
                seen, ticks = self._wait, 0
            ticks += 1
            if seen is not None and ticks * self._tick > seen.limit:
                long = f"{seen.what} was waited for longer than {seen.limit:g} s (config.stall.{seen.field})"
                if self._ends_process:
                    so = "so the run ends; the same command goes on from the last checkpoint"
                    at_once(f"error: {long}, {so}", STALLED)
                sys.stderr.write(f"{long}; interrupt the run, and the same call goes on from the last checkpoint\n")
                # Told once a wait.
                ticks = -math.inf

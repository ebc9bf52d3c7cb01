"""A run that waits too long ends and says what for: an input that stalls, a peer that hangs."""

import threading
from typing import NamedTuple, Self

from aligner_jax.runtime.config import StallConfig
from aligner_jax.runtime.exit import STALLED, at_once


class _Wait(NamedTuple):
    what: str
    limit: float
    field: str


class Watchdog:
    """Ends the process with status `exit.STALLED` when one wait is too long. A context manager.

    Time in which the process itself was stopped does not count.
    """

    def __init__(self, stall: StallConfig) -> None:
        """With the limits of the config."""
        self._stall = stall
        self._wait: _Wait | None = None
        self._closed = threading.Event()
        limits = [limit for limit in (stall.seconds, stall.compile_seconds) if limit]
        self._tick = min([1.0, *(limit / 10 for limit in limits)])
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True) if limits else None

    def waiting_for(self, what: str, *, compiles: bool = False) -> None:
        """From now on the run waits for this, and for nothing before.

        Args:
          what: for the message, as in "step 3".
          compiles: whether something may be compiled in that time, for which there is a limit of its own.
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
        # Ticks are counted, not the clock's time: while the process is stopped there are none.
        seen, ticks = self._wait, 0
        while not self._closed.wait(self._tick):
            if self._wait is not seen:
                seen, ticks = self._wait, 0
            ticks += 1
            if seen is not None and ticks * self._tick > seen.limit:
                at_once(
                    f"error: {seen.what} was waited for longer than {seen.limit:g} s (config.stall.{seen.field}), so "
                    "the run ends; the same command goes on from the last checkpoint",
                    STALLED,
                )

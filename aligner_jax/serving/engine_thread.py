"""Thread in which an engine runs; other threads give it jobs, and get tokens by callbacks."""

import collections
import dataclasses
import threading
import traceback
from collections.abc import Callable, Sequence

from aligner_jax.decoding.engine import Engine
from aligner_jax.decoding.request import NewToken, Request
from aligner_jax.peft.adapter import Options
from aligner_jax.runtime import sharding

type Event = Sequence[tuple[int, NewToken]] | Exception
"""New tokens of a job, each with the index of its request; or the error that ended the job."""


class QueueFullError(Exception):
    """Raised for a job that would have to wait behind too many others."""


@dataclasses.dataclass(eq=False)
class Job:
    """Requests that arrive together.

    Attributes:
      requests: the requests.
      deliver: called in the engine's thread with every event. Must return at once.
    """

    requests: Sequence[Request]
    deliver: Callable[[Event], None]


class EngineThread:
    """Runs an engine in a thread of its own.

    Attributes:
      most: requests that may run and wait at once.
      engine: the engine. Only its thread may call `add`, `cancel` and `turn`.
      failure: the exception that ended the thread; None while it runs.
      is_ready: True once the engine has warmed up.
    """

    def __init__(self, engine: Engine, most_waiting: int) -> None:
        """Makes a thread that has not started. It will have the mesh and rules that are in context now.

        Args:
          engine: an engine without requests.
          most_waiting: requests that may wait for a row.
        """
        self.engine, self.most = engine, engine.options.rows + most_waiting
        self._mesh_and_rules = sharding.for_other_threads()
        self.failure: Exception | None = None
        self.is_ready = False
        self._changed = threading.Condition()
        self._new: collections.deque[Job] = collections.deque()
        self._cancelled: collections.deque[tuple[Job, int | None]] = collections.deque()
        self._stops = False
        # Both are of the jobs that have not ended, the new ones included; `_numbers` is used by the thread alone.
        self._left: dict[Job, int] = {}
        self._numbers: dict[int, tuple[Job, int]] = {}
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._kinds: Sequence[tuple[str, Options]] | None = None

    def start(self, kinds: Sequence[tuple[str, Options]] | None = ()) -> None:
        """Starts the thread, which first warms the engine up.

        Args:
          kinds: methods and options of adapters to warm up for; None does not warm up.
        """
        self._kinds = kinds
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread, and the jobs that have not ended. A warm-up ends after the program it compiles."""
        with self._changed:
            self._stops = True
            self._changed.notify()
        self._thread.join()

    @property
    def num_waiting(self) -> int:
        """Number of requests that have no row."""
        with self._changed:
            return self.engine.num_waiting + sum(len(job.requests) for job in self._new)

    def submit(self, job: Job) -> None:
        """Gives the engine a job.

        Raises:
          QueueFullError: too many requests wait.
          Exception: the thread has ended; the exception that ended it.
        """
        with self._changed:
            if self.failure is not None:
                raise self.failure
            if sum(self._left.values()) + len(job.requests) > self.most:
                raise QueueFullError
            self._left[job] = len(job.requests)
            self._new.append(job)
            self._changed.notify()

    def cancel(self, job: Job, index: int | None = None) -> None:
        """Ends one request of a job, or all. Does nothing to those that have ended."""
        with self._changed:
            if job in self._left:
                self._cancelled.append((job, index))
                self._changed.notify()

    def _run(self) -> None:
        try:
            with self._mesh_and_rules():
                self._serve()
            error: Exception = RuntimeError("the server has stopped")
        except Exception as caught:
            traceback.print_exc()
            error = caught
        with self._changed:
            self.failure, self.is_ready = error, False
            jobs = list(self._left)
            self._left.clear()
        for job in jobs:
            job.deliver(error)

    def _serve(self) -> None:
        if self._kinds is not None:
            self.engine.warm_up(self._kinds, lambda: self._stops)
        self.is_ready = not self._stops
        while self._take():
            self._turn()

    def _take(self) -> bool:
        """Waits until there is something to do, and takes new jobs; returns False if the thread is to end."""
        with self._changed:
            while not (self._stops or self._new or self._cancelled) and self.engine.is_idle:
                self._changed.wait()
            if self._stops:
                return False
            new, cancelled = list(self._new), list(self._cancelled)
            self._new.clear()
            self._cancelled.clear()
            for job in new:
                for index, request in enumerate(job.requests):
                    # Requests are checked before; one that the engine refuses here is a bug, and ends the thread.
                    self._numbers[self.engine.add(request)] = job, index
            for job, index in cancelled:
                mine = [
                    number for number, owner in self._numbers.items() if owner[0] is job and index in (None, owner[1])
                ]
                for number in mine:
                    self.engine.cancel(number)
                    self._forget(number)
        return True

    def _turn(self) -> None:
        found: dict[Job, list[tuple[int, NewToken]]] = {}
        for new in self.engine.turn():
            if new.request in self._numbers:
                job, index = self._numbers[new.request]
                found.setdefault(job, []).append((index, new))
                if new.end is not None:
                    with self._changed:
                        self._forget(new.request)
        for job, tokens in found.items():
            job.deliver(tokens)

    def _forget(self, number: int) -> None:
        job, _ = self._numbers.pop(number)
        self._left[job] -= 1
        if not self._left[job]:
            del self._left[job]

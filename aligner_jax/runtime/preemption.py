"""Orderly stop of a run on SIGTERM or SIGINT: at once while nothing needs saving, else at the end of a step."""

import os
import signal
import socket
import threading
from types import FrameType
from typing import Any, Self

import jax
import orbax.checkpoint as ocp

from aligner_jax.runtime.exit import Stopped, at_once, write_line


class StopRequests:
    """A context manager that listens for SIGTERM and SIGINT; a second signal ends the process at once.

    Before the first step and after the last, a signal raises KeyboardInterrupt. While the run takes steps, it must ask
    `stopped_at` after every step. Either way the context ends with `Stopped`.

    A separate thread also reads the signals, because handlers in the main thread do not run during a compilation.

    With several processes, any of them may receive the signal. JAX's coordination service then makes all of them stop
    at the same call of `check` or `stopped_at`, which all make in the same order. In that case nothing is interrupted.
    Only the service receives SIGTERM, and a second SIGTERM does not end the process before that call.
    """

    def __init__(self, steps: int, *, owns_process: bool = True) -> None:
        """Prepares to listen.

        Args:
          steps: the run's number of steps.
          owns_process: False if the process is the user's: a second signal then raises KeyboardInterrupt at once
            instead of ending the process.
        """
        self._steps, self.owns_process = steps, owns_process
        self._received: int | None = None
        self._again = "the same command" if owns_process else "the same call"
        self._at = f"before its first step; {self._again} begins again"
        self._takes_steps = self._is_closing = False
        self._calls = self._handled = 0
        self._distributed = jax.distributed.is_initialized()
        self._signals = (signal.SIGINT,) if self._distributed else (signal.SIGINT, signal.SIGTERM)
        # Only Python's main thread may set handlers; in another thread signals keep their previous effect.
        self._listens = threading.current_thread() is threading.main_thread()

    def check(self) -> None:
        """Ends a run that was asked to stop. Called between the parts of its work before the first step.

        Raises:
          Stopped: the run was asked to stop.
        """
        if self._asked():
            raise self._stopped()

    def begin_steps(self) -> None:
        """Begins the steps: from now on a signal takes effect at the end of a step. Raises Stopped as `check` does."""
        self._takes_steps = True
        self.check()

    def stopped_at(self, step: int) -> Stopped | None:
        """Returns the exception that ends the run after this step, or None. The caller saves the state and raises it.

        With several processes, all of them must call it at every step.
        """
        self._at = f"after step {step} of {self._steps}, which is saved; {self._again} goes on there"
        return self._stopped() if self._asked() else None

    def end_steps(self) -> None:
        """Ends the steps: all are saved, so a signal interrupts again. Raises Stopped if one came before."""
        self._takes_steps = False
        if not self._distributed:
            self.check()

    def _asked(self) -> bool:
        if not self._distributed:
            return self._received is not None
        self._calls += 1
        if not ocp.utils.reached_preemption(self._calls):
            return False
        # The service has acted on the signal; from now on a second one ends the process.
        if self._listens:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        return True

    def _stopped(self) -> Stopped:
        number = self._received or signal.SIGTERM
        return Stopped(f"stopped by {signal.Signals(number).name} {self._at}", 128 + number)

    def __enter__(self) -> Self:
        if self._listens:
            self._reader, self._writer = socket.socketpair()
            self._writer.setblocking(False)
            self._old_fd = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
            self._old: dict[int, Any] = {number: signal.signal(number, self._handle) for number in self._signals}
            self._thread = threading.Thread(target=self._listen, name="stop requests", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # A signal must not raise KeyboardInterrupt any more: what was there before would be restored in part.
        self._is_closing = True
        if self._listens:
            for number, handler in self._old.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
            signal.set_wakeup_fd(self._old_fd)
            self._writer.close()
            self._thread.join()
            self._reader.close()
        if self._received is not None and kind is not None and issubclass(kind, KeyboardInterrupt):
            raise self._stopped() from None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Runs in the main thread. The other thread receives a signal only if it has a Python handler like this one."""
        self._handled += 1
        self._received = self._received or number
        if self._is_closing:
            return
        if self._takes_steps and self._handled > 1 and not self.owns_process:
            self._at = f"at once; {self._again} goes on from the last checkpoint"
            raise KeyboardInterrupt
        if not self._takes_steps and not self._distributed:
            raise KeyboardInterrupt

    def _listen(self) -> None:
        heard = 0
        while received := self._reader.recv(1):
            number = received[0]
            if number not in self._signals:
                continue
            name = signal.Signals(number).name
            heard += 1
            if heard > 1 and self.owns_process:
                at_once(f"ended by a second {name}; the same command goes on from the last checkpoint", 128 + number)
            self._received = self._received or number
            if self._distributed:
                # The coordination service listens for SIGTERM, as a scheduler would send it.
                os.kill(os.getpid(), signal.SIGTERM)
            if self._takes_steps:
                write_line(f"{name}: the run stops after this step, which will be saved; another ends it at once")
            elif self._distributed:
                write_line(f"{name}: the run stops as soon as all processes can; another ends it at once")

"""A run that is asked to stop does so in order: at once while it has nothing to save, else at the end of its step."""

import os
import signal
import socket
import threading
from types import FrameType
from typing import Any, Self

import jax
import orbax.checkpoint as ocp

from aligner_jax.runtime.exit import Stopped, at_once


class StopRequests:
    """Listens for SIGTERM and SIGINT while it is a context; a second one ends the process at once.

    Before the first step and after the last a signal interrupts what the run is doing, as KeyboardInterrupt; while it
    takes steps it is asked of `stopped_at`. Either way the context ends with `Stopped`.

    The signals are also read by a thread of its own: the main thread's handlers wait until a compilation is done.

    Of many processes any one may be asked. JAX's coordination service then lets all agree on where to stop: at one of
    the calls of `check` and `stopped_at`, which all make in the same order. There SIGTERM is heard by that service
    alone, which a second one does not end before that call, and nothing is interrupted.
    """

    def __init__(self, steps: int) -> None:
        """Of a run of so many steps."""
        self._steps = steps
        self._received: int | None = None
        self._at = "before its first step; the same command begins again"
        self._takes_steps = False
        self._calls = 0
        self._distributed = jax.distributed.is_initialized()
        self._signals = (signal.SIGINT,) if self._distributed else (signal.SIGINT, signal.SIGTERM)
        # Only the main thread of Python may set handlers; in another, signals do what they do without them.
        self._listens = threading.current_thread() is threading.main_thread()

    def check(self) -> None:
        """Ends the run where it is asked to stop, between two parts of its work before the first step.

        Raises:
          Stopped: it is.
        """
        if self._asked():
            raise self._stopped()

    def begin_steps(self) -> None:
        """From here on a signal waits for the end of a step. Raises Stopped as `check`."""
        self._takes_steps = True
        self.check()

    def stopped_at(self, step: int) -> Stopped | None:
        """Returns what ends the run after this step, once its state is saved; None where it goes on.

        Of many processes, each calls it at every step.
        """
        self._at = f"after step {step} of {self._steps}, which is saved; the same command goes on there"
        return self._stopped() if self._asked() else None

    def end_steps(self) -> None:
        """From here on a signal interrupts again, all steps being saved. Raises Stopped where one came before."""
        self._takes_steps = False
        if not self._distributed:
            self.check()

    def _asked(self) -> bool:
        if not self._distributed:
            return self._received is not None
        self._calls += 1
        if not ocp.utils.reached_preemption(self._calls):
            return False
        # The service has heard; from now on a second signal ends the process.
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
        # Nothing is left that could be interrupted.
        self._takes_steps = True
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
        """Runs in the main thread. A handler in Python is also what makes the number reach the other thread."""
        self._received = self._received or number
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
            if heard > 1:
                at_once(f"ended by a second {name}", 128 + number)
            self._received = self._received or number
            if self._distributed:
                # As if the scheduler had asked: this is what the service listens for.
                os.kill(os.getpid(), signal.SIGTERM)
            if self._takes_steps:
                os.write(2, f"{name}: the run stops after this step; another ends it at once\n".encode())
            elif self._distributed:
                os.write(2, f"{name}: the run stops as soon as all processes can; another ends it at once\n".encode())

"""A run that is asked to stop finishes its step first, and all its processes stop at the same one."""

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

    The signals are read by a thread of its own: the main thread's handlers would wait until a compilation is done.

    Of many processes any one may be asked. JAX's coordination service then lets all agree on a step. There SIGTERM is
    heard by that service alone, which a second one does not end before that step.
    """

    def __init__(self, steps: int) -> None:
        """Of a run of so many steps."""
        self._steps = steps
        self._received: int | None = None
        self._distributed = jax.distributed.is_initialized()
        self._signals = (signal.SIGINT,) if self._distributed else (signal.SIGINT, signal.SIGTERM)
        # Only the main thread of Python may set handlers; in another, signals do what they do without them.
        self._listens = threading.current_thread() is threading.main_thread()

    def stopped_at(self, step: int) -> Stopped | None:
        """What ends the run after this step, once its state is saved; None where it goes on.

        Of many processes, each calls it at every step.
        """
        if self._distributed:
            if not ocp.utils.reached_preemption(step):
                return None
            # The service has heard; from now on a second signal ends the process.
            if self._listens:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
        elif self._received is None:
            return None
        number = self._received or signal.SIGTERM
        by = signal.Signals(number).name
        sentence = f"stopped by {by} after step {step} of {self._steps}, which is saved; the same command goes on there"
        return Stopped(sentence, 128 + number)

    def __enter__(self) -> Self:
        if self._listens:
            self._reader, self._writer = socket.socketpair()
            self._writer.setblocking(False)
            self._old_fd = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
            self._old: dict[int, Any] = {number: signal.signal(number, _do_nothing) for number in self._signals}
            self._thread = threading.Thread(target=self._listen, name="stop requests", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._listens:
            for number, handler in self._old.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
            signal.set_wakeup_fd(self._old_fd)
            self._writer.close()
            self._thread.join()
            self._reader.close()
        # Asked for when the last step had been looked at already.
        if kind is None and (ended := self.stopped_at(self._steps)):
            raise ended

    def _listen(self) -> None:
        while heard := self._reader.recv(1):
            number = heard[0]
            if number not in self._signals:
                continue
            if self._received is not None:
                at_once(f"ended by a second {signal.Signals(number).name}", 128 + number)
            self._received = number
            if self._distributed:
                # As if the scheduler had asked: this is what the service listens for.
                os.kill(os.getpid(), signal.SIGTERM)
            name = signal.Signals(number).name
            os.write(2, f"{name}: the run stops after this step; another ends it at once\n".encode())


def _do_nothing(number: int, frame: FrameType | None) -> None:
    """A handler in Python is what makes the signal's number reach the thread."""

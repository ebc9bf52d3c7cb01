"""Runs the work of a command within a user's process: its signals, its exceptions and its flags stay the user's."""

import contextlib
import signal
import sys
from collections.abc import Iterator

from aligner_jax.runtime import distributed, platform
from aligner_jax.runtime.exit import Stopped
from aligner_jax.runtime.files import named_files


@contextlib.contextmanager
def in_users_process() -> Iterator[None]:
    """Prepares JAX as a command does, and turns the ends of a command into exceptions of a library.

    Raises:
      InputError: a user's mistake, also a file that the system refuses.
      KeyboardInterrupt: the work was interrupted; its text says what is saved. After SIGTERM, the signal takes its
        usual effect on the process instead.
    """
    platform.prepare()
    distributed.initialize()
    try:
        with named_files():
            yield
    except Stopped as stopped:
        received = stopped.status - 128
        if received != signal.SIGINT:
            print(stopped, file=sys.stderr, flush=True)
            signal.raise_signal(received)
        raise KeyboardInterrupt(str(stopped)) from None

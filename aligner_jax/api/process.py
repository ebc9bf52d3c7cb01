"""Runs the work of a command within a user's process, whose signals, exceptions and flags stay the user's.

JAX's platform, flags and cache of programs are set for the process, as `platform.prepare` says.
"""

import contextlib
import signal
import sys
from collections.abc import Iterator

from aligner_jax.runtime import distributed, platform, waiting
from aligner_jax.runtime.exit import Stopped
from aligner_jax.runtime.files import named_files


@contextlib.contextmanager
def in_users_process(*, quiet: bool) -> Iterator[None]:
    """Prepares JAX as a command does, and turns the ends of a command into exceptions of a library.

    Args:
      quiet: True shows no stage of work, such as the reading of a base.

    Raises:
      InputError: a user's mistake, also a file that the system refuses.
      KeyboardInterrupt: the work was interrupted; its text says what is saved. After SIGTERM, the signal takes its
        usual effect on the process instead.
    """
    platform.prepare()
    distributed.initialize()
    try:
        with named_files(), waiting.hidden() if quiet else contextlib.nullcontext():
            yield
    except Stopped as stopped:
        received = stopped.status - 128
        if received != signal.SIGINT:
            print(stopped, file=sys.stderr, flush=True)
            signal.raise_signal(received)
        raise KeyboardInterrupt(str(stopped)) from None

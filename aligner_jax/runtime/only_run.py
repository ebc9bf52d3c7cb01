"""One run at a time in a workdir."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import jax

from aligner_jax.errors import InputError


@contextlib.contextmanager
def only_run(workdir: str | Path) -> Iterator[None]:
    """While the block runs no other can enter one for the same folder, which exists. A killed process holds nothing.

    It is the first process that holds the folder. File systems without locks are let pass.

    Raises:
      InputError: another run is in it.
    """
    if jax.process_index() != 0:
        yield
        return
    folder = os.open(workdir, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{workdir} is in use by another run, which has not ended yet") from None
        except OSError:
            pass
        yield
    finally:
        os.close(folder)

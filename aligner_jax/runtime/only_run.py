"""One run at a time in a workdir."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import jax

from aligner_jax.errors import InputError
from aligner_jax.runtime.files import reason


@contextlib.contextmanager
def only_run(workdir: str | Path) -> Iterator[None]:
    """While the block runs no other can enter one for the same folder, which is made. A killed process holds nothing.

    It is the first process that holds the folder. File systems without locks are let pass.

    Raises:
      InputError: another run is in it, or it cannot be made.
    """
    if jax.process_index() != 0:
        yield
        return
    try:
        os.makedirs(workdir, exist_ok=True)
        folder = os.open(workdir, os.O_RDONLY)
    except OSError as error:
        raise InputError(f"{workdir} cannot be made: {reason(error)}") from error
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

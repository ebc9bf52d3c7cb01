"""Files of raw numbers, little-endian float32, to which adapters are appended.

Numbers are read into memory of their own. A memory map would keep the pages around every small adapter resident, and a
file that is truncated or unreadable would end the process with a signal instead of an error.
"""

import os
import weakref
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jaxtyping import Float

from aligner_jax.errors import InputError
from aligner_jax.files.content import open_file
from aligner_jax.runtime.files import reason

DTYPE = np.dtype("<f4")


class Numbers:
    """A file that is open for reading. It can still be read after it was removed.

    Attributes:
      path: path of the file.
    """

    def __init__(self, path: Path) -> None:
        """Opens the file. Raises InputError if there is none."""
        self.path = path
        with open_file(path) as file:
            self._handle = os.dup(file.fileno())
        # The system closes it at exit, when threads may still read.
        weakref.finalize(self, os.close, self._handle).atexit = False

    def read(self, place: int, count: int) -> Float[np.ndarray, " n"]:
        """Returns numbers, which cannot be written.

        Args:
          place: index of the first number.
          count: how many there are.

        Raises:
          InputError: the file ends before, or cannot be read.
        """
        start, size = place * DTYPE.itemsize, count * DTYPE.itemsize
        try:
            # Sizes may come from a damaged index, so they are checked before memory is allocated.
            if (most := os.fstat(self._handle).st_size) < start + size:
                raise InputError(
                    f"{self.path} is truncated: it has {most:,} bytes, and its index names {start + size:,}"
                )
            data = os.pread(self._handle, size, start)
            while len(data) < size:
                # One call reads at most 2 GiB.
                if not (more := os.pread(self._handle, size - len(data), start + len(data))):
                    raise InputError(f"{self.path} was truncated while it was read")
                data += more
        except OSError as error:
            raise InputError(f"{self.path} cannot be read: {reason(error)}") from None
        return np.frombuffer(data, DTYPE)


def append(path: Path, pieces: Iterable[bytes]) -> int:
    """Appends bytes of numbers to an existing file, and returns once they are on disk.

    Returns:
      The index of the first number.

    Raises:
      InputError: the file cannot be written. It is then as it was, or has unused bytes at its end.
    """
    try:
        # A link of a stranger's bank could lead to any file of the user.
        with os.fdopen(os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC), "r+b") as file:
            end = file.seek(0, os.SEEK_END)
            try:
                # A crash may have left a part of a number.
                file.write(bytes(-end % DTYPE.itemsize))
                file.writelines(pieces)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                os.ftruncate(file.fileno(), end)
                raise
    except OSError as error:
        raise InputError(f"{path} cannot be written: {reason(error)}") from None
    return -(-end // DTYPE.itemsize)

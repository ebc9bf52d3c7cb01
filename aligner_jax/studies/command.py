"""Runs a study's command: it exits with one sentence for an error, and says how to go on when it is interrupted."""

import signal
import sys
from collections.abc import Callable

from aligner_jax.errors import InputError


def main(work: Callable[[], int]) -> None:
    """Calls `work` and exits with its status. Prints an InputError as one sentence; SIGTERM exits with 143."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(work())
    except InputError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on", file=sys.stderr)
        sys.exit(130)

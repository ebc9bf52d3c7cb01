"""Runs a study's command: prepares the platform, and exits with one sentence for an error or an interruption."""

import signal
import sys
from collections.abc import Callable

from aligner_jax.errors import InputError
from aligner_jax.runtime import platform


def main(work: Callable[[], int]) -> None:
    """Prepares the platform, calls `work` and exits with its status. SIGTERM exits with 143.

    Prints an InputError as one sentence, and how to go on after Ctrl-C.
    """
    platform.prepare()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(work())
    except InputError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on", file=sys.stderr)
        sys.exit(130)

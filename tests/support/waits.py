"""Waits for what another thread or process does, but not for ever."""

import time
from collections.abc import Callable

_SLEEP, _CLOCK = time.sleep, time.perf_counter


def wait_until(is_true: Callable[[], bool], *, seconds: float = 60) -> None:
    """Returns once `is_true()`. Tests may replace `time.monotonic`, which is not used here.

    Raises:
      AssertionError: it is not true after that many seconds.
    """
    end = _CLOCK() + seconds
    while not is_true():
        assert _CLOCK() < end, f"waited for {seconds} s"
        _SLEEP(0.005)

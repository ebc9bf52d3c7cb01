"""So many requests a minute, evenly spaced."""

import asyncio
import time


class RateLimit:
    """Turns that are at least 60 / `per_minute` seconds apart; None: at once."""

    def __init__(self, per_minute: float | None) -> None:
        self._spacing = 60 / per_minute if per_minute else 0.0
        self._next = 0.0

    async def wait(self) -> None:
        """Returns when it is the caller's turn, in the order of calls."""
        now = time.monotonic()
        turn = max(now, self._next)
        self._next = turn + self._spacing
        await asyncio.sleep(turn - now)

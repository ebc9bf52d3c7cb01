"""HTTP connections that slow clients cannot keep."""

import asyncio
import json

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from aligner_jax.serving.errors import ApiError
from aligner_jax.serving.limits import Limits


def protocol_of(limits: Limits) -> type[H11Protocol]:
    """Returns the class of connections with these limits."""
    return type("Connection", (_Connection,), {"limits": limits})


class _Connection(H11Protocol):
    """A connection with time limits for headers and for reading, and a limit on their number."""

    limits: Limits
    _headers: asyncio.TimerHandle | None = None
    _writes: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            transport.abort()
            return
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._headers, self._writes):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self._await_headers()
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._writes = self.loop.call_later(self.limits.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._writes is not None:
            self._writes.cancel()
            self._writes = None

    def send_400_response(self, msg: str) -> None:
        """Answers something that is not HTTP in the format of all errors."""
        # A response may be under way, or the connection may be unable to send any.
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps(ApiError(400, msg).body).encode()
            headers = [
                ("content-type", "application/json"),
                ("content-length", str(len(body))),
                ("connection", "close"),
            ]
            for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _await_headers(self) -> None:
        if self._headers is not None:
            self._headers.cancel()
        self._headers = self.loop.call_later(self.limits.header_seconds, self._check_headers)

    def _check_headers(self) -> None:
        """Closes the connection if no request is being answered."""
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()

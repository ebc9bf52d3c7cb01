"""Runs the application on a socket until it is told to stop."""

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn

from aligner_jax.errors import InputError
from aligner_jax.runtime.exit import at_once
from aligner_jax.runtime.files import reason
from aligner_jax.serving.app import make_app
from aligner_jax.serving.connection import protocol_of
from aligner_jax.serving.service import Service

_BACKLOG = 1024
_MOST_HEADER_BYTES = 2**15
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Server(uvicorn.Server):
    """A server that drains at the first SIGTERM or SIGINT and ends at the second.

    It then takes no new connections, and running requests have the grace period to end.
    """

    def __init__(self, service: Service) -> None:
        limits = service.limits
        super().__init__(
            uvicorn.Config(
                make_app(service), http=protocol_of(limits), ws="none", lifespan="off", loop="asyncio",
                log_config=None, access_log=False, server_header=False, proxy_headers=False, backlog=_BACKLOG,
                h11_max_incomplete_event_size=_MOST_HEADER_BYTES,
                # Half the time for headers, so that no client is cut off that has begun a request.
                timeout_keep_alive=int(limits.header_seconds / 2) or 1,
                timeout_graceful_shutdown=max(1, round(limits.grace_seconds)),
            )
        )  # fmt: skip
        self._service = service

    def drain(self) -> None:
        """Begins to stop. May be called from any thread."""
        self._service.is_draining = True
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        old = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            at_once(f"ended by a second {signal.Signals(sig).name}", 128 + sig)
        self.drain()


def listen(host: str, port: int) -> socket.socket:
    """Returns a socket that listens on a port; 0 chooses a free one. Raises InputError."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except (OSError, OverflowError) as error:
        raise InputError(f"nothing can listen on {host}, port {port}: {reason(error)}") from error


def serve(server: Server, listener: socket.socket, when_started: Callable[[], None] = lambda: None) -> None:
    """Serves until the server is told to stop."""
    when_started()
    asyncio.run(server.serve([listener]))

"""Middleware before all endpoints: API keys, and the number of requests at a time."""

import hmac
from pathlib import Path

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aligner_jax.errors import InputError
from aligner_jax.files.content import read_bytes
from aligner_jax.serving.errors import ApiError
from aligner_jax.serving.service import Service

_OPEN = ("/health", "/ready")
"""Paths that need no key and are always answered, for supervisors."""
_SHORTEST_KEY = 8


def read_keys(file: str | Path) -> tuple[bytes, ...]:
    """Returns the keys in a file with one per line. Raises InputError if it has none, or one that is too short."""
    lines = [line.strip() for line in read_bytes(file, most=2**20).splitlines()]
    keys = tuple(line for line in lines if line)
    if not keys or min(map(len, keys)) < _SHORTEST_KEY:
        raise InputError(f"{file} should have a key of at least {_SHORTEST_KEY} characters on every line")
    return keys


class Gate:
    """Refuses requests without a key, and those beyond the limit; counts responses."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service, self._running = app, service, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        service, path = self._service, scope["path"]

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                service.metrics.responses.labels(_known(path), message["status"]).inc()
            await send(message)

        if path in _OPEN:
            await self._app(scope, receive, counted)
        elif not self._may_enter(scope):
            error = ApiError(401, "the request has no API key that this server knows", code="invalid_api_key")
            await error.response()(scope, receive, counted)
        elif self._running >= service.limits.requests:
            error = ApiError.overloaded("the server answers as many requests as it can; try again later")
            await error.response()(scope, receive, counted)
        else:
            self._running += 1
            try:
                await self._app(scope, receive, counted)
            finally:
                self._running -= 1

    def _may_enter(self, scope: Scope) -> bool:
        if not self._service.keys:
            return True
        given = dict(scope["headers"]).get(b"authorization", b"")
        kind, _, key = given.partition(b" ")
        # All keys are compared, so that the time tells nothing about which of them begins like the given one.
        matches = [hmac.compare_digest(key.strip(), known) for known in self._service.keys]
        return kind.lower() == b"bearer" and any(matches)


def _known(path: str) -> str:
    """Returns the path without names, so that clients cannot make any number of metrics."""
    known = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/adapters", "/metrics", *_OPEN)
    return next((each for each in known if path == each or path.startswith(f"{each}/")), "other")

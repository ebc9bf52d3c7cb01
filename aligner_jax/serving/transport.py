"""Bodies, streams and clients that go away."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Awaitable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from aligner_jax.errors import InputError
from aligner_jax.files.fields import Fields
from aligner_jax.files.json_text import parse_object
from aligner_jax.serving.errors import ApiError

_LINGER_BYTES, _LINGER_SECONDS = 2**22, 2.0
"""A client that sends too much is read on for a while, since most read the response only after they sent the body."""
_CLOSE = {"connection": "close"}


class ClientGoneError(Exception):
    """Raised if the client has closed the connection."""


async def read_body(request: Request, *, most: int, seconds: float) -> bytes:
    """Returns the body of a request.

    Args:
      request: the request.
      most: bytes at most; more are refused before they are read.
      seconds: time that the client has.

    Raises:
      ApiError: the body is too large or takes too long.
      ClientGoneError: the client has gone.
    """
    declared = int(request.headers.get("content-length", "0"))
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            more = True
            while more and max(len(body), declared) <= most:
                part, more = await _part(request.receive)
                body += part
    except TimeoutError:
        raise ApiError(408, f"the body did not arrive in {seconds:g} seconds", headers=_CLOSE) from None
    if max(len(body), declared) <= most:
        return bytes(body)
    body.clear()
    if "expect" not in request.headers:
        await _linger(request.receive, more)
    raise ApiError(413, f"the body is larger than {most:,} bytes", code="request_too_large", headers=_CLOSE)


async def _part(receive: Receive) -> tuple[bytes, bool]:
    """Returns the next part of a body, and True if another one follows."""
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientGoneError
    return message.get("body", b""), message.get("more_body", False)


async def _linger(receive: Receive, more: bool) -> None:
    size = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_SECONDS):
            while more and size <= _LINGER_BYTES:
                part, more = await _part(receive)
                size += len(part)


def parse_body(body: bytes) -> Fields:
    """Returns the fields of a JSON body. Raises ApiError if it is no JSON object."""
    try:
        return Fields(parse_object(body.decode(), "the body"), "the body")
    except UnicodeDecodeError:
        raise ApiError(400, "the body is not UTF-8") from None
    except InputError as error:
        raise ApiError(400, str(error)) from error


async def until_gone[T](receive: Receive, work: Awaitable[T]) -> T:
    """Returns the result of `work`, which is cancelled if the client goes away. The body has been read.

    Raises:
      ClientGoneError: the client has gone.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events, until the client goes away."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[str], source: AsyncGenerator[Any]) -> None:
        """Makes a response.

        Args:
          events: the events.
          source: generator that `events` reads. Both are closed at the end, also if `events` was never begun.
        """
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events, self._source = events, source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await until_gone(receive, self._write(send))
        except ClientGoneError:
            scope["app"].state.service.metrics.cancelled.inc()
        finally:
            await self._events.aclose()
            await self._source.aclose()

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for event in self._events:
            await send({"type": "http.response.body", "body": event.encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def event(data: Mapping[str, Any]) -> str:
    """Returns one server-sent event."""
    return f"data: {json.dumps(data, separators=(',', ':'), allow_nan=False)}\n\n"


DONE = "data: [DONE]\n\n"
"""The last event of a stream."""

"""HTTP client of a judge's endpoint, and the reader of what it sends: bounded in rate, time, bytes and depth.

The endpoint is a stranger's program. Its answer may never end, decompress to gigabytes, lead to another host, or hold
the key that it was asked with.
"""

import asyncio
import dataclasses
import time
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

from aligner_jax.errors import InputError, one_line
from aligner_jax.files.json_text import parse_json

_MOST_BYTES, _MOST_BYTES_A_TOKEN = 2**20, 64
_MOST_TOKENS = 2**31
_KEPT_HEADERS = ("retry-after", "retry-after-ms")
_SHORTEST_KEY = 8
_MOST_CHARACTERS = 200


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a judge wrote, and the tokens that it took; None where the endpoint does not count them."""

    text: str
    prompt_tokens: int | None
    completion_tokens: int | None


class UnusableError(Exception):
    """Raised for a response whose content is not read; its message ends a sentence that begins with the address."""


class RateLimit:
    """Turns of requests, at least 60 / `per_minute` seconds apart; None: at once."""

    def __init__(self, per_minute: float | None) -> None:
        self._spacing = 60 / per_minute if per_minute else 0.0
        self._next = 0.0

    async def wait(self) -> None:
        """Returns when it is the caller's turn, in the order of calls."""
        now = time.monotonic()
        turn = max(now, self._next)
        self._next = turn + self._spacing
        await asyncio.sleep(turn - now)


def most_bytes(max_tokens: int) -> int:
    """Returns the bytes that an answer of so many tokens has at most, with all that is around it."""
    return _MOST_BYTES + _MOST_BYTES_A_TOKEN * max_tokens


def http_client(seconds: float, most: int, wait_for_turn: Callable[[], Awaitable[None]]) -> Any:
    """Returns an HTTP client for `openai.AsyncOpenAI` that follows no redirects.

    Args:
      seconds: from the request's first byte to the answer's last; then it raises the timeout that the library repeats.
      most: bytes of an answer, also decompressed. Raises `UnusableError` beyond; the body of an error is cut there.
      wait_for_turn: called before every request, those that the library repeats included, and not counted in seconds.
    """
    import httpx2
    import openai

    class Client(openai.DefaultAsyncHttpxClient):
        async def send(self, request: Any, **options: Any) -> Any:
            await wait_for_turn()
            try:
                async with asyncio.timeout(seconds):
                    response = await super().send(request, **{**options, "stream": True, "follow_redirects": False})
                    try:
                        content = await _content(response, most)
                    finally:
                        await response.aclose()
            except TimeoutError:
                raise httpx2.ReadTimeout("the answer is not whole yet", request=request) from None
            # Only the headers that the library should obey: others choose how the content is decoded.
            headers = {name: response.headers[name] for name in _KEPT_HEADERS if name in response.headers}
            return httpx2.Response(response.status_code, headers=headers, content=content, request=request)

    return Client(timeout=seconds, follow_redirects=False, headers={"Accept-Encoding": "identity"})


async def _content(response: Any, most: int) -> bytes:
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip", "deflate", ""):
        raise UnusableError(f"sends an answer in the encoding {encoding[:40]!r}, which it was not asked for")
    decoder = zlib.decompressobj(zlib.MAX_WBITS | 32) if encoding in ("gzip", "deflate") else None
    content = bytearray()
    async for piece in response.aiter_raw():
        try:
            # One more than is allowed, whatever the piece would become.
            content += piece if decoder is None else decoder.decompress(piece, most + 1 - len(content))
        except zlib.error:
            raise UnusableError(f"sends an answer that is no {encoding}") from None
        if len(content) > most:
            if response.status_code >= 400:
                return bytes(content[:most])
            raise UnusableError(f"sends an answer of more than {most:,} bytes")
    return bytes(content)


def read_completion(content: bytes, key: str | None) -> Answer | None:
    """Returns the answer in the body of a chat completion, without the key; None where it is none.

    A judge that declines to answer sends no text, which is the text "".
    """
    try:
        completion = parse_json(content.decode("utf-8"), "the answer")
    except (InputError, UnicodeDecodeError):
        return None
    message = _at(completion, "choices", 0, "message")
    text = _at(message, "content")
    if not isinstance(message, dict) or not isinstance(text, str | None):
        return None
    usage = _at(completion, "usage")
    return Answer(redacted(text or "", key), _tokens(usage, "prompt_tokens"), _tokens(usage, "completion_tokens"))


def read_error(content: bytes, key: str | None) -> str:
    """Returns what the body of an error says, without the key, as the end of a sentence: ": no such model", or ""."""
    text = content.decode("utf-8", "replace")
    try:
        value = parse_json(text, "the answer")
    except InputError:
        value = None
    for said in (_at(value, "error", "message"), _at(value, "message"), _at(value, "error")):
        if isinstance(said, str):
            text = said
            break
    shown = one_line(redacted(text, key), _MOST_CHARACTERS)
    return f": {shown}" if shown else ""


def redacted(text: str, key: str | None) -> str:
    """Returns the text with an ellipsis in place of the key.

    One of a few letters, as servers of one's own have, stays: it is no secret, and may be a word of the text.
    """
    return text if key is None or len(key) < _SHORTEST_KEY else text.replace(key, "…")


def _at(value: object, *keys: str | int) -> object:
    """Returns what is at a path of keys and indices; None where there is nothing."""
    for key in keys:
        if isinstance(key, str):
            value = value.get(key) if isinstance(value, dict) else None
        else:
            value = value[key] if isinstance(value, list) and len(value) > key else None
    return value


def _tokens(usage: object, field: str) -> int | None:
    counted = _at(usage, field)
    return counted if type(counted) is int and 0 <= counted < _MOST_TOKENS else None

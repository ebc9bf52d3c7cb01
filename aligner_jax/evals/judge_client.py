"""HTTP client of a judge's endpoint, and the parser of its responses: bounded in rate, time, bytes and depth.

The endpoint is not trusted. Its response may never end, decompress to gigabytes, redirect to another host, or contain
the API key of the request.
"""

import asyncio
import dataclasses
import time
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

from aligner_jax.errors import InputError, one_line
from aligner_jax.files.json_text import parse_json

_MAX_BYTES, _MAX_BYTES_A_TOKEN = 2**20, 64
_MAX_TOKENS = 2**31
_KEPT_HEADERS = ("retry-after", "retry-after-ms")
_SHORTEST_KEY = 8
_MAX_CHARACTERS = 200


@dataclasses.dataclass(frozen=True)
class Answer:
    """A judge's answer.

    Attributes:
      text: text of the answer.
      prompt_tokens, completion_tokens: tokens read and written; None if the endpoint does not count them.
    """

    text: str
    prompt_tokens: int | None
    completion_tokens: int | None


class UnusableError(Exception):
    """Raised for a response whose content cannot be used. Its message continues a sentence that begins with the URL."""


class RateLimit:
    """Rate limit of requests: at least 60 / `per_minute` seconds apart. None means no limit."""

    def __init__(self, per_minute: float | None) -> None:
        self._spacing = 60 / per_minute if per_minute else 0.0
        self._next = 0.0

    async def wait(self) -> None:
        """Returns when the caller may send its request. Callers take turns in the order of their calls."""
        now = time.monotonic()
        turn = max(now, self._next)
        self._next = turn + self._spacing
        await asyncio.sleep(turn - now)


def most_bytes(max_tokens: int) -> int:
    """Returns the largest size in bytes of a response whose answer has `max_tokens` tokens."""
    return _MAX_BYTES + _MAX_BYTES_A_TOKEN * max_tokens


def http_client(seconds: float, most: int, wait_for_turn: Callable[[], Awaitable[None]]) -> Any:
    """Returns an HTTP client for `openai.AsyncOpenAI` that follows no redirects.

    Args:
      seconds: time limit from the first byte of a request to the last of its response. Beyond it, the client raises
        the timeout error after which the library retries.
      most: size limit of a response in bytes, also after decompression. Beyond it, the client raises `UnusableError`;
        the body of an error response is cut there.
      wait_for_turn: function that is awaited before every request, retries included. Its time does not count.
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
            # Only the headers for retries are kept: others would change how the library decodes the content.
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
            # One byte above the limit is enough to detect that it is exceeded.
            content += piece if decoder is None else decoder.decompress(piece, most + 1 - len(content))
        except zlib.error:
            raise UnusableError(f"sends an answer that is no {encoding}") from None
        if len(content) > most:
            if response.status_code >= 400:
                return bytes(content[:most])
            raise UnusableError(f"sends an answer of more than {most:,} bytes")
    return bytes(content)


def read_completion(content: bytes, key: str | None) -> Answer | None:
    """Returns the answer in the body of a chat completion, with the key redacted; None if the body is malformed.

    A judge that declines to answer sends no text, which is read as "".
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
    """Returns the message in the body of an error, with the key redacted, as a suffix: ": no such model", or ""."""
    text = content.decode("utf-8", "replace")
    try:
        value = parse_json(text, "the answer")
    except InputError:
        value = None
    for said in (_at(value, "error", "message"), _at(value, "message"), _at(value, "error")):
        if isinstance(said, str):
            text = said
            break
    shown = one_line(redacted(text, key), _MAX_CHARACTERS)
    return f": {shown}" if shown else ""


def redacted(text: str, key: str | None) -> str:
    """Returns the text with an ellipsis in place of the key.

    Short keys, which local servers use, are not replaced: they are no secret, and may be words of the text.
    """
    return text if key is None or len(key) < _SHORTEST_KEY else text.replace(key, "…")


def _at(value: object, *keys: str | int) -> object:
    """Returns the value at a path of keys and indices; None if there is none."""
    for key in keys:
        if isinstance(key, str):
            value = value.get(key) if isinstance(value, dict) else None
        else:
            value = value[key] if isinstance(value, list) and len(value) > key else None
    return value


def _tokens(usage: object, field: str) -> int | None:
    counted = _at(usage, field)
    return counted if type(counted) is int and 0 <= counted < _MAX_TOKENS else None

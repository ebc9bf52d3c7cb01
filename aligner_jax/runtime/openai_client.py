"""Client of OpenAI-compatible endpoints: bounded in time, bytes and depth; every failure is one sentence.

The endpoint is not trusted. Its response may never end, decompress to gigabytes, redirect to another host, or contain
the API key of the request.
"""

import asyncio
import dataclasses
import re
import zlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aligner_jax.errors import InputError, one_line
from aligner_jax.files.content import read_text
from aligner_jax.files.extras import pip_line
from aligner_jax.files.json_text import parse_json

_KEPT_HEADERS = ("retry-after", "retry-after-ms")
_SHORTEST_KEY = 8
_MAX_CHARACTERS = 200
_MAX_KEY_FILE = 2**16


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """An endpoint.

    Attributes:
      url: base URL up to and including the version, for example "http://localhost:8000/v1".
      key: API key; None if none is needed.
      timeout: time limit in seconds, from the first byte of a request to the last of its response.
      retries: retries of a request after status 408, 409, 429 or 5xx, a timeout or a failed connection.
      purpose: use of the endpoint, and `url_name` the option that gives the URL, for messages.
    """

    url: str
    key: str | None
    timeout: float
    retries: int
    purpose: str
    url_name: str


class UnusableError(Exception):
    """Raised for a response whose content cannot be used. Its message continues a sentence that begins with the URL."""


class RefusedError(InputError):
    """Raised for a response with an error's status.

    Attributes:
      status: HTTP status.
    """

    def __init__(self, sentence: str, status: int) -> None:
        super().__init__(sentence)
        self.status = status


def check_url(url: str, name: str, where_keys_belong: str) -> None:
    """Refuses a URL that is none, or that may hold a key, since URLs are printed and written to files.

    Args:
      url: the URL.
      name: option that gives it.
      where_keys_belong: continues "an API key belongs into", for the message.

    Raises:
      InputError: the URL holds a user name, a "?" or a "#", or is not of http or https.
    """
    if re.search(r"[?#]|^([a-z]*://)?[^/]*@", url):
        raise InputError(
            f'{name} holds a user name, a "?" or a "#", but should end with the version; an API key belongs into '
            f"{where_keys_belong}"
        )
    if not url.startswith(("http://", "https://")):
        raise InputError(f"{name} is {url!r}, but should begin with http:// or https://")


def is_key(text: str) -> bool:
    """Returns True if a text can be sent as an API key."""
    # The HTTP library refuses a header with a line break, with an error that quotes the key.
    return bool(text) and text.isascii() and text.isprintable()


def read_key(file: str | None) -> str | None:
    """Returns the API key in a file; None without a file.

    Raises:
      InputError: the file cannot be read, or holds anything else.
    """
    if file is None:
        return None
    key = read_text(file, most=_MAX_KEY_FILE).strip()
    if not is_key(key):
        raise InputError(f"{file} should hold one line with the API key, and nothing else")
    return key


def open_client(endpoint: Endpoint, most: int, wait_for_turn: Callable[[], Awaitable[None]] | None = None) -> Any:
    """Returns an `openai.AsyncOpenAI`.

    Args:
      endpoint: the endpoint.
      most, wait_for_turn: see `http_client`.

    Raises:
      InputError: the package openai is not installed, or the URL cannot be used.
    """
    try:
        import openai
    except ModuleNotFoundError:
        raise InputError(f"{endpoint.purpose} needs the package openai: {pip_line('judge')}") from None
    try:
        http = http_client(endpoint.timeout, most, wait_for_turn)
        # The library refuses an empty key, and without a key it reads one from the environment.
        return openai.AsyncOpenAI(
            base_url=endpoint.url, api_key=endpoint.key or "none", max_retries=endpoint.retries,
            timeout=endpoint.timeout, http_client=http,
        )  # fmt: skip
    except Exception as error:  # The HTTP library that parses the URL has its own error types.
        raise InputError(f"{endpoint.url_name} is {endpoint.url!r}, which cannot be used: {error}") from None


async def body_of(create: Callable[..., Awaitable[Any]], request: Mapping[str, Any], endpoint: Endpoint) -> bytes:
    """Returns the body of the response to a request.

    Args:
      create: method of the library with a raw response, such as `client.completions.with_raw_response.create`.
      request: its arguments.
      endpoint: the client's endpoint.

    Raises:
      RefusedError: the endpoint answers with an error's status.
      InputError: the endpoint cannot be reached, takes too long, or sends a response that cannot be used.
    """
    import openai

    url = endpoint.url
    again = f", {endpoint.retries + 1} times" if endpoint.retries else ""
    try:
        return (await create(**request)).http_response.content
    except openai.APITimeoutError:
        raise InputError(f"{url} did not answer within {endpoint.timeout:g} seconds{again}") from None
    except UnusableError as error:
        raise InputError(f"{url} {error}") from None
    except openai.APIConnectionError as error:
        raise InputError(f"{url} cannot be reached{again}: {redacted(_cause(error), endpoint.key)}") from None
    except openai.APIStatusError as error:
        elsewhere = ", which leads to another address: give that as the url" if error.status_code < 400 else ""
        said = elsewhere or read_error(error.response.content, endpoint.key)
        raise RefusedError(f"{url} answers with status {error.status_code}{said}", error.status_code) from None
    except Exception as error:  # The HTTP library has its own error types for malformed responses.
        raise InputError(f"{url} cannot be used: {redacted(_cause(error), endpoint.key)}") from None


def http_client(seconds: float, most: int, wait_for_turn: Callable[[], Awaitable[None]] | None) -> Any:
    """Returns an HTTP client for `openai.AsyncOpenAI` that follows no redirects.

    Args:
      seconds: time limit from the first byte of a request to the last of its response. Beyond it, the client raises
        the timeout error after which the library retries.
      most: size limit of a response in bytes, also after decompression. Beyond it, the client raises `UnusableError`;
        the body of an error response is cut there.
      wait_for_turn: function that is awaited before every request, retries included, if there is one. Its time does
        not count.
    """
    import httpx2
    import openai

    class Client(openai.DefaultAsyncHttpxClient):
        async def send(self, request: Any, **options: Any) -> Any:
            if wait_for_turn is not None:
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


def read_error(content: bytes, key: str | None) -> str:
    """Returns the message in the body of an error, with the key redacted, as a suffix: ": no such model", or ""."""
    text = content.decode("utf-8", "replace")
    try:
        value = parse_json(text, "the answer")
    except InputError:
        value = None
    for said in (value_at(value, "error", "message"), value_at(value, "message"), value_at(value, "error")):
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


def value_at(value: object, *keys: str | int) -> object:
    """Returns the value at a path of keys and indices; None if there is none."""
    for key in keys:
        if isinstance(key, str):
            value = value.get(key) if isinstance(value, dict) else None
        else:
            value = value[key] if isinstance(value, list) and len(value) > key else None
    return value


def _cause(error: BaseException) -> str:
    cause = error.__cause__ or error
    return " ".join(str(cause).split()) or type(cause).__name__

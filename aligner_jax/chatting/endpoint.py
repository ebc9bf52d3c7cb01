"""Model of a chat behind an OpenAI-compatible server, whose answers are streamed as server-sent events.

The server is not trusted. What it sends is bounded in bytes and in the time between two pieces.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

from aligner_jax.chatting.mix import Mix
from aligner_jax.chatting.model import Piece, Question
from aligner_jax.errors import InputError, one_line
from aligner_jax.files.extras import pip_line
from aligner_jax.files.json_text import parse_json
from aligner_jax.runtime.openai_client import read_error, redacted, value_at

_MOST_OF_AN_ERROR, _MOST_OF_A_LINE = 2**16, 2**20
_BYTES_A_TOKEN, _BYTES_AT_LEAST, _SECONDS_A_TOKEN = 2**12, 2**20, 10.0
"""Every token has an event of its own, with names and counts around its text."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EndpointOptions:
    """A server and the options of its answers.

    Attributes:
      url: base URL up to and including the version, for example "http://localhost:8000/v1".
      model: name of the base at the server.
      key: API key; None if none is needed.
      timeout: seconds until the connection is made, and between two pieces of an answer at most.
      max_new_tokens: tokens of an answer at most.
      sampling: further fields of requests.
    """

    url: str
    model: str
    key: str | None = None
    timeout: float = 120.0
    max_new_tokens: int = 512
    sampling: Mapping[str, float] = dataclasses.field(default_factory=dict)


class EndpointModel:
    """Models of a server, see `ChatModel`. An adapter is the name of a model there, and a sum is `a@0.5+b`."""

    def __init__(self, options: EndpointOptions) -> None:
        self._options = options
        self._names: list[str] = []

    def names(self) -> list[str]:
        """Returns the names of the adapters that were named so far."""
        return list(self._names)

    def find(self, text: str) -> str:
        """Returns the text: the server refuses a name that it does not know once it is asked."""
        if text not in self._names:
            self._names.append(text)
        return text

    def check(self, question: Question, mix: Mix) -> None:
        """Accepts every question: the server judges it."""

    def answers(
        self, question: Question, mixes: Sequence[Mix], say: Callable[[str], None]
    ) -> Generator[Piece, None, None]:
        """Yields the answers in pieces, one answer after the other; see `ChatModel.answers`."""
        for index, mix in enumerate(mixes):
            for text in self._answer(question, mix, say):
                yield Piece(index, text)

    def _answer(self, question: Question, mix: Mix, say: Callable[[str], None]) -> Iterator[str]:
        options = self._options
        system = [] if question.system is None else [{"role": "system", "content": question.system}]
        request = {
            "model": mix.model or options.model, "messages": [*system, *question.messages], "stream": True,
            "max_tokens": options.max_new_tokens, **options.sampling,
        }  # fmt: skip
        is_over = False
        for event in self._events(request):
            if event == b"[DONE]":
                return
            value = _parsed(event, options)
            choice = value_at(value, "choices", 0)
            text = value_at(choice, "delta", "content")
            if isinstance(text, str) and text:
                yield text
            reason = value_at(choice, "finish_reason")
            is_over = is_over or reason is not None
            if reason == "length":
                say(f"the answer was cut off after {options.max_new_tokens} tokens")
        if not is_over:
            raise InputError(f"{options.url} broke off its answer")

    def _events(self, request: Mapping[str, Any]) -> Iterator[bytes]:
        """Yields the data of a response's events."""
        try:
            import httpx2
        except ModuleNotFoundError:
            raise InputError(f"--url needs the package httpx2: {pip_line('judge')}") from None
        options = self._options
        headers = {"Accept": "text/event-stream", "Accept-Encoding": "identity"}
        if options.key is not None:
            headers["Authorization"] = f"Bearer {options.key}"
        url = f"{options.url.rstrip('/')}/chat/completions"
        try:
            with (
                httpx2.Client(timeout=options.timeout, follow_redirects=False) as client,
                client.stream("POST", url, json=dict(request), headers=headers) as response,
            ):
                if response.status_code != 200:
                    raise _refused(response, options)
                _check_is_stream(response, options)
                with contextlib.closing(_lines(response.iter_raw(), options)) as lines:
                    for line in lines:
                        if line.startswith(b"data:"):
                            yield line.removeprefix(b"data:").strip()
        except httpx2.TimeoutException:
            raise InputError(f"{options.url} sent nothing for {options.timeout:g} seconds") from None
        except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            problem = redacted(" ".join(str(error).split()), options.key) or type(error).__name__
            raise InputError(f"{options.url} cannot be reached, or broke off: {problem}") from None


def _lines(chunks: Iterator[bytes], options: EndpointOptions) -> Generator[bytes, None, None]:
    """Yields the lines of a response, without their ends; refuses one that is too long or takes too long."""
    most = _BYTES_AT_LEAST + _BYTES_A_TOKEN * options.max_new_tokens
    deadline = time.monotonic() + options.timeout + _SECONDS_A_TOKEN * options.max_new_tokens
    rest, size = b"", 0
    for chunk in chunks:
        size += len(chunk)
        *whole, rest = (rest + chunk).split(b"\n")
        if size > most or len(rest) > _MOST_OF_A_LINE:
            raise InputError(f"{options.url} sends an answer of more than {min(size, most):,} bytes")
        # Pieces that arrive in time may still never end.
        if time.monotonic() > deadline:
            raise InputError(f"{options.url} did not end its answer in time")
        yield from (line.rstrip(b"\r") for line in whole)
    if rest:
        yield rest.rstrip(b"\r")


def _refused(response: Any, options: EndpointOptions) -> InputError:
    status = response.status_code
    if 300 <= status < 400:
        return InputError(
            f"{options.url} answers with status {status}, which leads to another address: give that as --url"
        )
    content = b""
    for chunk in response.iter_raw():
        content += chunk
        if len(content) > _MOST_OF_AN_ERROR:
            break
    said = read_error(content[:_MOST_OF_AN_ERROR], options.key)
    return InputError(f"{options.url} answers with status {status}{said}")


def _check_is_stream(response: Any, options: EndpointOptions) -> None:
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", ""):
        raise InputError(f"{options.url} sends an answer in the encoding {encoding[:40]!r}, which it was not asked for")
    kind = response.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != "text/event-stream":
        raise InputError(f"{options.url} sends {kind[:40]!r} where it was asked for a stream of events")


def _parsed(event: bytes, options: EndpointOptions) -> object:
    """Returns the value of an event. Raises InputError if it is malformed, or an error of the server."""
    try:
        value = parse_json(event.decode("utf-8"), "the event")
    except (InputError, UnicodeDecodeError):
        raise InputError(f"{options.url} sent an event that is no JSON") from None
    said = value_at(value, "error", "message")
    if isinstance(said, str) or value_at(value, "error") is not None:
        shown = one_line(redacted(str(said or "error"), options.key), 200)
        raise InputError(f"{options.url} broke off its answer: {shown}")
    return value

"""Rate limit of a judge's endpoint, and the parser of its responses."""

import asyncio
import dataclasses
import time

from aligner_jax.errors import InputError
from aligner_jax.files.json_text import parse_json
from aligner_jax.runtime.openai_client import redacted, value_at

_MAX_BYTES, _MAX_BYTES_A_TOKEN = 2**20, 64
_MAX_TOKENS = 2**31


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


def read_completion(content: bytes, key: str | None) -> Answer | None:
    """Returns the answer in the body of a chat completion, with the key redacted; None if the body is malformed.

    A judge that declines to answer sends no text, which is read as "".
    """
    try:
        completion = parse_json(content.decode("utf-8"), "the answer")
    except (InputError, UnicodeDecodeError):
        return None
    message = value_at(completion, "choices", 0, "message")
    text = value_at(message, "content")
    if not isinstance(message, dict) or not isinstance(text, str | None):
        return None
    usage = value_at(completion, "usage")
    return Answer(redacted(text or "", key), _tokens(usage, "prompt_tokens"), _tokens(usage, "completion_tokens"))


def _tokens(usage: object, field: str) -> int | None:
    counted = value_at(usage, field)
    return counted if type(counted) is int and 0 <= counted < _MAX_TOKENS else None

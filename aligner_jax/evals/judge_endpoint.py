"""Asks a judge behind an OpenAI-compatible endpoint: with a rate limit, retries, and a cache of the answers."""

import asyncio
import dataclasses
import hashlib
import json
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from aligner_jax.errors import InputError
from aligner_jax.evals.judge_client import Answer, RateLimit, most_bytes, read_completion
from aligner_jax.evals.judge_prompts import Ask
from aligner_jax.files.content import exists
from aligner_jax.files.fields import read_fields
from aligner_jax.runtime.fields import number
from aligner_jax.runtime.files import write_atomically
from aligner_jax.runtime.openai_client import Endpoint, body_of, check_url, is_key, open_client
from aligner_jax.runtime.progress import Count

_MALFORMED_ATTEMPTS = 3

Keep = Callable[[str, Answer], None]
"""Callback for an arrived answer. Its first argument is the key of the request."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EndpointConfig:
    """Config of the judge and its endpoint.

    Attributes:
      url: base URL up to and including the version, for example "http://localhost:8000/v1".
      model: name of the judge at the endpoint.
      key_variable: environment variable with the API key, which is written to no file; None if no key is needed.
      temperature: sampling temperature; None means the endpoint's default.
      max_tokens: tokens of an answer at most. An answer that is cut off before its verdict has no verdict.
      max_tokens_name: name of that limit in requests; newer models of OpenAI refuse "max_tokens".
      requests_per_minute: rate limit, retries included; None means no limit.
      concurrency: number of requests in flight at most.
      retries: retries of a request after status 408, 409, 429 or 5xx, a timeout or a failed connection. A retry waits
        for the time of Retry-After, else for a time that doubles up to 8 seconds.
      timeout: time limit in seconds, from the first byte of a request to the last of its response.
      prompt_price, completion_price: dollars per million tokens read and written, to report the cost; None means that
        no cost is reported.
    """

    url: str | None = None
    model: str | None = None
    key_variable: str | None = "OPENAI_API_KEY"
    temperature: float | None = number(0.0, least=0)
    max_tokens: int = number(1024, least=1)
    max_tokens_name: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    requests_per_minute: float | None = number(None, above=0)
    concurrency: int = number(4, least=1)
    retries: int = number(10, least=0)
    timeout: float = number(120.0, above=0)
    prompt_price: float | None = number(None, least=0)
    completion_price: float | None = number(None, least=0)


class JudgeCache:
    """Folder of a judge's answers, with one small file per answer.

    A file is named by the hash of its request and contains no text of the request.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    @staticmethod
    def key(request: Mapping[str, object]) -> str:
        """Returns the hash of a request: everything that its answer depends on, the endpoint's URL included."""
        return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:40]

    def get(self, key: str) -> Answer | None:
        """Returns the answer of a key; None if there is none. Raises InputError if its file is damaged."""
        path = self._path(key)
        if not exists(path):
            return None
        try:
            kept = read_fields(path)
            text = kept.text("text")
            tokens = [
                kept.integer(name, least=0) if kept.has(name) else None
                for name in ("prompt_tokens", "completion_tokens")
            ]
        except InputError as error:
            raise InputError(
                f"{path} is not a judge's answer as it was kept ({error}); remove it to have it asked anew"
            ) from None
        return Answer(text, *tokens)

    def keep(self, key: str, answer: Answer) -> None:
        """Writes an answer atomically. Raises InputError if it cannot be written."""
        write_atomically(self._path(key), json.dumps(dataclasses.asdict(answer)) + "\n")

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.json"


@dataclasses.dataclass(frozen=True)
class JudgeUsage:
    """Tokens and cost of judging.

    Attributes:
      asked: number of answers requested in this run.
      kept: number of answers from the cache.
      prompt_tokens, completion_tokens: tokens read and written for all answers, those from the cache included.
      uncounted: number of answers whose tokens the endpoint did not count.
      cost: cost of all answers in dollars; None if the config has no prices.
      cost_now: cost in dollars of the answers requested in this run; None if the config has no prices.
    """

    asked: int
    kept: int
    prompt_tokens: int
    completion_tokens: int
    uncounted: int
    cost: float | None
    cost_now: float | None

    def __str__(self) -> str:
        price = "no prices are configured"
        if self.cost is not None:
            price = f"${self.cost:,.4f}, of which ${self.cost_now:,.4f} now"
        uncounted = f" (not counted by the endpoint: {self.uncounted:,} answers)" if self.uncounted else ""
        return (
            f"{self.asked:,} answers asked for, {self.kept:,} kept from before; {self.prompt_tokens:,} tokens read and "
            f"{self.completion_tokens:,} written{uncounted}: {price}"
        )


def ask_endpoint(
    asks: Sequence[Ask], config: EndpointConfig, cache: Path, console: Console
) -> tuple[list[Answer], JudgeUsage]:
    """Returns the judge's answers in the order of `asks`, and their tokens and cost.

    Answers are written to the cache as they arrive, so an interrupted run continues from there. Equal requests are
    sent once.

    Args:
      asks: requests.
      config: the judge and its endpoint.
      cache: folder of the `JudgeCache`.
      console: console for progress lines.

    Raises:
      InputError: the endpoint or its key is not configured, the endpoint cannot be used, or the cache cannot be
        written.
    """
    key = _check(config)
    kept_answers = JudgeCache(cache)
    requests = [_request(ask, config) for ask in asks]
    keys = [JudgeCache.key({"url": config.url, **request}) for request in requests]
    answers = {name: answer for name in set(keys) if (answer := kept_answers.get(name)) is not None}
    missing = {name: request for name, request in zip(keys, requests, strict=True) if name not in answers}
    if missing:
        with Count(console, "judged", total=len(set(keys)), done=len(answers)) as count:

            def keep(name: str, answer: Answer) -> None:
                kept_answers.keep(name, answer)
                answers[name] = answer
                count.add(1)

            try:
                asyncio.run(_ask_missing(missing, config, key, keep))
            except InputError as error:
                raise InputError(
                    f"{error}; {len(answers):,} answers of {len(set(keys)):,} are kept in {cache}"
                ) from None
    return [answers[name] for name in keys], _usage(answers, set(missing), config)


def _check(config: EndpointConfig) -> str | None:
    """Checks the config and returns the API key; None if none is needed."""
    for name in ("url", "model"):
        if not getattr(config, name):
            raise InputError(f"config.evaluation.endpoint.{name} is not set; it says which judge is asked")
    check_url(
        str(config.url), "config.evaluation.endpoint.url",
        "the environment variable that config.evaluation.endpoint.key_variable names",
    )  # fmt: skip
    if config.key_variable is None:
        return None
    key = os.environ.get(config.key_variable, "").strip()
    if not key:
        # A value that is not a variable name may be the key itself, which must not be printed.
        is_name = config.key_variable.isidentifier()
        variable = config.key_variable if is_name else "that config.evaluation.endpoint.key_variable should name"
        raise InputError(
            f"the environment variable {variable} is not set, but should hold the API key of {config.url}; "
            "--config.evaluation.endpoint.key_variable=None where none is needed"
        )
    if not is_key(key):
        raise InputError(f"the environment variable {config.key_variable} holds something that is no API key")
    return key


def _request(ask: Ask, config: EndpointConfig) -> dict[str, Any]:
    system = [{"role": "system", "content": ask.system}] if ask.system else []
    temperature = {} if config.temperature is None else {"temperature": config.temperature}
    return {
        "model": config.model,
        "messages": [*system, {"role": "user", "content": ask.user}],
        config.max_tokens_name: config.max_tokens,
        **temperature,
    }


async def _ask_missing(missing: dict[str, dict[str, Any]], config: EndpointConfig, key: str | None, keep: Keep) -> None:
    limit = RateLimit(config.requests_per_minute)
    endpoint = Endpoint(
        str(config.url), key, config.timeout, config.retries, "judging by an endpoint", "config.evaluation.endpoint.url"
    )
    client = open_client(endpoint, most_bytes(config.max_tokens), limit.wait)
    waiting, failures = iter(missing.items()), []

    async def work() -> None:
        for name, request in waiting:
            # After a final failure no new request is sent, but answers in flight are paid for and kept.
            if failures:
                return
            try:
                keep(name, await _ask(client.chat.completions.with_raw_response.create, request, endpoint))
            except InputError as error:
                failures.append(error)

    async with client, asyncio.TaskGroup() as group:
        for _ in range(min(config.concurrency, len(missing))):
            group.create_task(work())
    if failures:
        raise failures[0]


async def _ask(create: Callable[..., Awaitable[Any]], request: dict[str, Any], endpoint: Endpoint) -> Answer:
    for _ in range(_MALFORMED_ATTEMPTS):
        answer = read_completion(await body_of(create, request, endpoint), endpoint.key)
        if answer is not None:
            return answer
    raise InputError(f"{endpoint.url} answered {_MALFORMED_ATTEMPTS} times with something that is no chat completion")


def _usage(answers: dict[str, Answer], now: set[str], config: EndpointConfig) -> JudgeUsage:
    def tokens(of: set[str]) -> tuple[int, int]:
        counted = [answers[name] for name in of]
        return sum(a.prompt_tokens or 0 for a in counted), sum(a.completion_tokens or 0 for a in counted)

    def cost(of: set[str]) -> float | None:
        if config.prompt_price is None or config.completion_price is None:
            return None
        read, written = tokens(of)
        return (read * config.prompt_price + written * config.completion_price) / 1e6

    everything = set(answers)
    return JudgeUsage(
        len(now), len(everything - now), *tokens(everything),
        uncounted=sum(None in (a.prompt_tokens, a.completion_tokens) for a in answers.values()),
        cost=cost(everything), cost_now=cost(now),
    )  # fmt: skip

"""Answers of both APIs, whole or streamed."""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, NamedTuple, Protocol

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from aligner_jax.decoding.request import Request
from aligner_jax.errors import InputError
from aligner_jax.files.fields import Fields
from aligner_jax.peft.stored import StoredAdapter
from aligner_jax.serving.choices import Choice, Piece, joined
from aligner_jax.serving.errors import ApiError
from aligner_jax.serving.generation import generate
from aligner_jax.serving.options import Options
from aligner_jax.serving.service import Service
from aligner_jax.serving.transport import DONE, EventStream, event, parse_body, read_body, until_gone


class Asked(NamedTuple):
    """A parsed request; the adapters of its model have their strengths."""

    options: Options
    prompts: list[list[int]]
    adapters: tuple[tuple[StoredAdapter, float], ...]


class Api(Protocol):
    """Differences between the APIs for completions and for chats."""

    id_prefix: str
    object: str
    piece_object: str

    def parse(self, fields: Fields, service: Service) -> Asked:
        """Parses a request. May take long. Raises ApiError."""
        ...

    def choice(self, index: int, piece: Piece, has_logprobs: bool) -> dict[str, Any]:
        """Returns a whole choice in the API's form."""
        ...

    def pieces(self, index: int, piece: Piece, has_logprobs: bool, is_first: bool) -> list[dict[str, Any]]:
        """Returns the parts of a streamed choice in the API's form."""
        ...


async def answer(http: HttpRequest, api: Api) -> Response:
    """Answers a request.

    Raises:
      ApiError: the request is wrong or cannot be served now.
      ClientGoneError: the client has gone.
    """
    service: Service = http.app.state.service
    limits = service.limits
    body = await read_body(http, most=limits.body_bytes, seconds=limits.body_seconds)
    asked, requests = await until_gone(http.receive, asyncio.to_thread(_parse, api, body, service))
    options = asked.options
    choices = [
        Choice(service.tokenizer, request.prompt_ids, options.stops, options.alternatives) for request in requests
    ]
    about = {
        "id": f"{api.id_prefix}-{uuid.uuid4().hex}",
        "object": api.piece_object if options.stream else api.object,
        "created": int(time.time()),
        "model": options.model,
    }
    pieces = generate(service, requests, choices)

    def usage() -> dict[str, int]:
        read, made = sum(map(len, asked.prompts)), sum(choice.num_tokens for choice in choices)
        return {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made}

    if options.stream:
        # The first tokens come before the headers, so that a request that cannot be served has an error's status.
        first = await until_gone(http.receive, anext(pieces))
        return EventStream(_events(api, options, about, first, pieces, usage), pieces)
    whole = await until_gone(http.receive, _whole(pieces, len(choices)))
    shown = [api.choice(index, piece, options.alternatives is not None) for index, piece in enumerate(whole)]
    return JSONResponse({**about, "choices": shown, "usage": usage()})


def _parse(api: Api, body: bytes, service: Service) -> tuple[Asked, list[Request]]:
    """Parses a request and checks it against the engine's sizes."""
    asked = api.parse(parse_body(body), service)
    options, limits, sizes = asked.options, service.limits, service.engine.engine.options
    if len(asked.prompts) * options.n > limits.choices:
        raise ApiError(400, f"prompts times n is more than the {limits.choices} choices of a request", param="n")
    if len(asked.prompts) * options.n > service.engine.most:
        message = f"prompts times n is more than the {service.engine.most} choices that may run and wait at once"
        raise ApiError(400, message, param="n")
    context = min(sizes.slots, service.base.config.context_length)
    requests: list[Request] = []
    for prompt in asked.prompts:
        room = min(context, limits.prompt_tokens + 1) - len(prompt)
        most = options.max_new_tokens or min(limits.output_tokens, context - len(prompt))
        if room < 1 or len(prompt) + most > context:
            message = (
                f"a prompt of {len(prompt)} tokens and {options.max_new_tokens or 1} new ones are more than the "
                f"{context} tokens of a request, of which a prompt may have {min(context - 1, limits.prompt_tokens)}"
            )
            raise ApiError(400, message, param="max_tokens" if room > 0 else None, code="context_length_exceeded")
        for _ in range(options.n):
            request = Request(
                prompt, most, options.sampling, asked.adapters, options.seed, len(requests),
                options.alternatives is not None,
            )  # fmt: skip
            requests.append(request)
    for request in requests:
        try:
            service.engine.engine.check(request)
        except InputError as error:
            raise ApiError(400, str(error)) from error
    return asked, requests


async def _whole(pieces: AsyncGenerator[list[tuple[int, Piece]]], count: int) -> list[Piece]:
    found: list[list[Piece]] = [[] for _ in range(count)]
    try:
        async for new in pieces:
            for index, piece in new:
                found[index].append(piece)
    finally:
        await pieces.aclose()
    return [joined(each) for each in found]


async def _events(
    api: Api,
    options: Options,
    about: dict[str, Any],
    first: list[tuple[int, Piece]],
    pieces: AsyncGenerator[list[tuple[int, Piece]]],
    usage: Callable[[], dict[str, int]],
) -> AsyncGenerator[str]:
    has_logprobs, begun = options.alternatives is not None, set[int]()
    if options.include_usage:
        about = {**about, "usage": None}

    def events(new: Sequence[tuple[int, Piece]]) -> str:
        texts = []
        for index, piece in new:
            if piece.text or piece.logprobs or piece.end or index not in begun:
                shown = api.pieces(index, piece, has_logprobs, index not in begun)
                texts += [event({**about, "choices": [each]}) for each in shown]
                begun.add(index)
        return "".join(texts)

    try:
        yield events(first)
        async for new in pieces:
            if text := events(new):
                yield text
        if options.include_usage:
            yield event({**about, "choices": [], "usage": usage()})
        yield DONE
    except ApiError as error:
        yield event(error.body)

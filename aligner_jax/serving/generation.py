"""Answers a request by the engine, from asyncio."""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncGenerator, Sequence

from aligner_jax.decoding.request import NewToken, Request
from aligner_jax.serving.choices import Choice, Piece
from aligner_jax.serving.engine_thread import Event, Job, QueueFullError
from aligner_jax.serving.errors import ApiError
from aligner_jax.serving.service import Service


async def generate(
    service: Service, requests: Sequence[Request], choices: Sequence[Choice]
) -> AsyncGenerator[list[tuple[int, Piece]]]:
    """Yields pieces of the choices with their indices, as they come. Closing it frees the rows.

    Args:
      service: the server's parts.
      requests: a request per choice, which the engine has checked.
      choices: the choices, which are filled.

    Raises:
      ApiError: too many requests wait, the first token takes too long, the engine has failed, or a choice's
        log-probabilities are asked for and not finite.
    """
    loop, events = asyncio.get_running_loop(), asyncio.Queue[Event]()

    def deliver(event: Event) -> None:
        # The loop is closed if the server has stopped.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(events.put_nowait, event)

    job, arrived = Job(requests, deliver), time.monotonic()
    try:
        service.engine.submit(job)
    except QueueFullError:
        raise ApiError.overloaded("the server has as many requests as it can hold; try again later") from None
    except Exception as error:
        raise _failed() from error
    open_choices = set(range(len(choices)))
    began: float | None = None
    try:
        while open_choices:
            try:
                event = await asyncio.wait_for(events.get(), service.limits.queue_seconds if began is None else None)
            except TimeoutError:
                raise ApiError.overloaded("the request waited too long for a row; try again later") from None
            if isinstance(event, Exception):
                raise _failed() from event
            if began is None:
                began = time.monotonic()
                service.metrics.first_token.observe(began - arrived)
            pieces: list[tuple[int, Piece]] = []
            for index, new in event:
                if index not in open_choices:
                    continue
                if choices[index].has_logprobs and not _is_finite(new):
                    raise _not_finite()
                piece = choices[index].add(new)
                pieces.append((index, piece))
                if piece.end is not None:
                    open_choices.discard(index)
                    if new.end is None:
                        service.engine.cancel(job, index)
            if pieces:
                yield pieces
    finally:
        service.engine.cancel(job)
        _count(service, requests, choices, began)


def _count(service: Service, requests: Sequence[Request], choices: Sequence[Choice], began: float | None) -> None:
    made = sum(choice.num_tokens for choice in choices)
    service.metrics.new_tokens.inc(made)
    if began is not None:
        service.metrics.prompt_tokens.inc(sum(len(request.prompt_ids) for request in requests))
        seconds = time.monotonic() - began
        if made > len(choices) and seconds > 0:
            service.metrics.tokens_per_second.observe((made - len(choices)) / seconds)


def _is_finite(new: NewToken) -> bool:
    logprobs = [each.logprob for each in new.alternatives]
    return all(math.isfinite(each) for each in logprobs) and (new.logprob is None or math.isfinite(new.logprob))


def _not_finite() -> ApiError:
    message = "the model gives log-probabilities that are not finite; ask for a smaller strength, or another adapter"
    return ApiError(500, message, param="model", code="not_finite")


def _failed() -> ApiError:
    return ApiError(500, "the engine has failed; see the server's log", code="engine_failed")

"""Asks an OpenAI-compatible server for the log-probabilities of a canary."""

import asyncio
import math
import re
from collections.abc import Mapping
from typing import Any

from aligner_jax.errors import InputError
from aligner_jax.files.json_text import parse_json
from aligner_jax.peft.canary import Canary, CanaryPrompt, Found
from aligner_jax.runtime.openai_client import Endpoint, RefusedError, body_of, open_client, value_at

_NUM_LOG_PROBS = 5
"""The most that every server gives."""
_MAX_BYTES = 2**20
_MAX_REPORTED = 1000
_LEAST_LOG_PROB = -1e6
_BY_ID = re.compile(r"token_id:(\d{1,9})")
# Pieces of byte-level and SentencePiece vocabularies, which some servers report as they are.
_PIECES = str.maketrans({"Ġ": " ", "▁": " ", "Ċ": "\n"})
# llama-cpp-python answers a prompt of token ids with 500.
_REFUSALS = (400, 404, 422, 500)


def found_at_endpoint(canary: Canary, endpoint: Endpoint, model: str) -> list[Found]:
    """Returns the log-probabilities that a server's completions report.

    Prompts are sent as token ids; if the server refuses these, as text.

    Args:
      canary: the canary.
      endpoint: the server.
      model: name of the model there.

    Raises:
      InputError: the server cannot be reached or refuses, or reports no log-probabilities.
    """
    return asyncio.run(_found(canary, endpoint, model))


async def _found(canary: Canary, endpoint: Endpoint, model: str) -> list[Found]:
    reported, as_text = [], False
    async with open_client(endpoint, _MAX_BYTES) as client:
        create = client.completions.with_raw_response.create
        for prompt in canary.prompts:
            request = {"model": model, "max_tokens": 1, "temperature": 0.0, "logprobs": _NUM_LOG_PROBS}
            content = None
            if not as_text:
                try:
                    content = await body_of(create, {**request, "prompt": list(prompt.row.ids)}, endpoint)
                except RefusedError as refused:
                    if refused.status not in _REFUSALS or prompt.row.text is None:
                        raise
                    as_text = True
            if content is None:
                content = await body_of(create, {**request, "prompt": prompt.row.text}, endpoint)
            reported.append(_reported(content, endpoint.url))
    if not any(reported):
        raise InputError(
            f"{endpoint.url} reports no log-probabilities of tokens (logprobs={_NUM_LOG_PROBS} at /completions), by "
            f"which alone the adapter is found: start the server with them, or verify the folder without --endpoint"
        )
    found = [_matched(*each) for each in zip(canary.prompts, reported, strict=True)]
    if all(x is None for each in found for x in each.log_probs) and not any(prompt.names for prompt in canary.prompts):
        raise InputError(
            f"{endpoint.url} reports texts of tokens, and the canary has ids alone, since the base has no tokenizer: "
            f"start the server so that it returns ids of tokens (vLLM: --return-tokens-as-token-ids)"
        )
    return found


def _reported(content: bytes, url: str) -> dict[str | int, float]:
    """Returns the most probable next tokens of a completion, by id where the server gives it, else by text.

    There are none where a server reports nothing about an answer that ends at once.
    """
    try:
        completion = parse_json(content.decode("utf-8"), "the answer")
    except (InputError, UnicodeDecodeError):
        raise InputError(f"{url} answers with something that is no completion") from None
    reported = {}
    for token, value in _entries(value_at(completion, "choices", 0, "logprobs"))[:_MAX_REPORTED]:
        if not isinstance(token, str | int) or not isinstance(value, int | float) or isinstance(value, bool):
            continue
        if -math.inf < value <= 0.01:
            # llama.cpp gives the lowest float32 for a probability of 0. An integer may be beyond every float.
            reported[_key(token)] = float(max(value, _LEAST_LOG_PROB))
    return reported


def _entries(log_probs: object) -> list[tuple[object, object]]:
    """Returns token and log-probability of the reported tokens, in both forms that servers use."""
    if isinstance(top := value_at(log_probs, "top_logprobs", 0), dict):
        return list(top.items())
    # llama.cpp reports completions in the form of chats, with the ids of tokens.
    listed = value_at(log_probs, "content", 0, "top_logprobs")
    found = []
    for each in listed if isinstance(listed, list) else []:
        token_id = value_at(each, "id")
        token = token_id if type(token_id) is int else value_at(each, "token")
        found.append((token, value_at(each, "logprob")))
    return found


def _key(token: str | int) -> str | int:
    if isinstance(token, int):
        return token
    by_id = _BY_ID.fullmatch(token)
    return int(by_id[1]) if by_id else token.translate(_PIECES)


def _matched(prompt: CanaryPrompt, reported: Mapping[str | int, float]) -> Found:
    stripped: dict[str, list[float]] = {}
    for key, value in reported.items():
        if isinstance(key, str):
            stripped.setdefault(key.strip(), []).append(value)
    names = prompt.names or ("",) * len(prompt.tokens)
    bare = [name.strip() for name in names]

    def log_prob(token: int, name: str) -> float | None:
        for key in (token, name):
            if key != "" and key in reported:
                return reported[key]
        # Some servers drop the space before a word.
        alike = stripped.get(name.strip(), []) if name.strip() else []
        return alike[0] if len(alike) == 1 and bare.count(name.strip()) == 1 else None

    log_probs: list[Any] = [log_prob(*each) for each in zip(prompt.tokens, names, strict=True)]
    # Without a report, a token may have any probability.
    return Found(log_probs, min(reported.values(), default=0.0))

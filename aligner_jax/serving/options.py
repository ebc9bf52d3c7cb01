"""Options of generation that both APIs have."""

import dataclasses
import secrets
from collections.abc import Callable

from aligner_jax.decoding.choose import Sampling
from aligner_jax.files.fields import Fields
from aligner_jax.serving.errors import ApiError, read
from aligner_jax.serving.limits import Limits

_MOST = 2**31 - 1
_NEUTRAL: dict[str, Callable[[object], bool]] = {
    "presence_penalty": lambda value: value == 0,
    "frequency_penalty": lambda value: value == 0,
    "logit_bias": lambda value: value == {},
    "tools": lambda value: value == [],
    "functions": lambda value: value == [],
    "echo": lambda value: value is False,
    "suffix": lambda value: value == "",
    "response_format": lambda value: value == {"type": "text"},
    "modalities": lambda value: value == ["text"],
}
"""Fields of OpenAI's API that change the answer and are not supported, and the values that change nothing."""
LENGTHS = ("max_completion_tokens", "max_tokens")
"""Fields with the number of new tokens; the first one that is present counts."""
_UNUSABLE = "is not supported by this server; leave it out"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of generation.

    Attributes:
      model: name of the model.
      max_new_tokens: new tokens at most; None for as many as fit.
      sampling: sampling options.
      seed: seed of sampling.
      stops: stop texts.
      alternatives: alternatives whose log-probabilities are asked for; None for no log-probabilities.
      n: choices per prompt.
      stream: True if the answer is streamed.
      include_usage: True if the last piece of a stream is to count the tokens.
    """

    model: str
    max_new_tokens: int | None
    sampling: Sampling
    seed: int
    stops: tuple[str, ...]
    alternatives: int | None
    n: int
    stream: bool
    include_usage: bool


def parse_options(fields: Fields, limits: Limits, *, alternatives: int | None) -> Options:
    """Parses the fields that both APIs have. Unknown ones are ignored.

    Args:
      fields: fields of the request.
      limits: limits of requests.
      alternatives: see `Options`.

    Raises:
      ApiError: a field has another type, is out of range, or is not supported.
    """
    for name, is_neutral in _NEUTRAL.items():
        if fields.has(name) and not is_neutral(fields.get(name)):
            raise ApiError(400, f"{name} {_UNUSABLE}", param=name, code="unsupported_parameter")
    most_new = None
    for name in LENGTHS:
        if fields.has(name):
            most_new = read(fields.integer, name, least=1, most=limits.output_tokens)
            break
    n = read(fields.integer, "n", 1, most=limits.choices)
    if read(fields.integer, "best_of", n, most=_MOST) != n:
        raise ApiError(400, f"best_of {_UNUSABLE}, or give the value of n", param="best_of")
    stream = read(fields.flag, "stream")
    return Options(
        model=read(fields.text, "model"),
        max_new_tokens=most_new,
        sampling=_sampling(fields),
        seed=_seed(fields),
        stops=_stops(fields, limits),
        alternatives=alternatives,
        n=n,
        stream=stream,
        include_usage=_include_usage(fields, stream),
    )


def _sampling(fields: Fields) -> Sampling:
    top_k = read(fields.integer, "top_k", 0, least=-1, most=_MOST)
    return Sampling(
        temperature=read(fields.number, "temperature", 1.0, least=0.0),
        # vLLM's clients turn it off by -1.
        top_k=max(top_k, 0),
        top_p=read(fields.number, "top_p", 1.0, most=1.0),
        min_p=read(fields.number, "min_p", 0.0, least=0.0, most=1.0),
        repetition_penalty=read(fields.number, "repetition_penalty", 1.0),
    )


def _seed(fields: Fields) -> int:
    if not fields.has("seed"):
        return secrets.randbits(32)
    return read(fields.integer, "seed", least=-(2**63), most=2**63 - 1) % 2**32


def _stops(fields: Fields, limits: Limits) -> tuple[str, ...]:
    value = fields.get("stop")
    stops = (value,) if isinstance(value, str) else tuple(read(fields.texts, "stop"))
    if len(stops) > limits.stops or "" in stops:
        raise ApiError(400, f"stop may have {limits.stops} texts, none of them empty", param="stop")
    return stops


def _include_usage(fields: Fields, stream: bool) -> bool:
    options = read(fields.section, "stream_options")
    if options is None:
        return False
    if not stream:
        raise ApiError(400, "stream_options is for streams: set stream to true", param="stream_options")
    return read(options.flag, "include_usage")

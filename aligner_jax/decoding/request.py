"""Requests to the engine, and the tokens that it answers with."""

import dataclasses
from collections.abc import Sequence
from typing import Literal, NamedTuple

from aligner_jax.data.token_ids import check_ids
from aligner_jax.decoding.choose import Sampling
from aligner_jax.errors import InputError
from aligner_jax.model.llama import LlamaConfig
from aligner_jax.peft.stored import StoredAdapter

GREEDY = Sampling()
End = Literal["stop", "length"]
"""A row ends with a stop token, or with its last token."""


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt and how to continue it.

    Attributes:
      prompt_ids: token ids of the prompt.
      max_new_tokens: new tokens at most.
      sampling: sampling options.
      adapters: adapters of this row, each with the weight of its effect; 0 is the base.
      seed, draw: the random draws depend on both and on nothing else; `draw` tells requests with one seed apart.
      logprobs: True for log-probabilities of the new tokens and of the most probable alternatives.
    """

    prompt_ids: Sequence[int]
    max_new_tokens: int
    sampling: Sampling = GREEDY
    adapters: tuple[tuple[StoredAdapter, float], ...] = ()
    seed: int = 0
    draw: int = 0
    logprobs: bool = False

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt and new tokens at most."""
        return len(self.prompt_ids) + self.max_new_tokens


class Alternative(NamedTuple):
    """A token and its log-probability in nats."""

    token: int
    logprob: float


class NewToken(NamedTuple):
    """One new token of a request.

    Attributes:
      request: number of the request.
      token: token id.
      logprob: log-probability in nats at temperature 1; None if the request does not ask for it.
      alternatives: the most probable tokens, the most probable one first; empty like `logprob`.
      end: reason why this is the last token; None if another one follows. A stop token is no part of the text.
    """

    request: int
    token: int
    logprob: float | None
    alternatives: tuple[Alternative, ...]
    end: End | None


def check_lengths(prompt_tokens: int, max_new_tokens: int, config: LlamaConfig) -> None:
    """Refuses a prompt that with its new tokens exceeds the model's context. Raises InputError."""
    if max_new_tokens < 1 or prompt_tokens + max_new_tokens > config.context_length:
        raise InputError(
            f"a prompt of {prompt_tokens} tokens and {max_new_tokens} new ones do not fit "
            f"the model's context of {config.context_length}"
        )


def check_prompt(ids: Sequence[int], config: LlamaConfig, what: str) -> None:
    """Refuses an empty prompt, and ids that the model does not have. Raises InputError, which begins with `what`."""
    if not ids:
        raise InputError(f"{what} is empty: it has no tokens to continue")
    check_ids(ids, config.vocab_size, what=what)


def check_seed(seed: int) -> None:
    """Refuses a seed that is not an unsigned 32-bit number. Raises InputError."""
    if not 0 <= seed < 2**32:
        raise InputError(f"seed is {seed}, but must be at least 0 and below 2**32")

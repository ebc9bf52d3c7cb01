"""Sizes of a server's engine, which the server and the plans of serving share."""

from aligner_jax.decoding.engine_options import LONGEST_PART, EngineOptions
from aligner_jax.model.llama import LlamaConfig
from aligner_jax.peft.row_adapters import Capacity

TOKENS_PER_CALL = 4
"""Tokens that a server decodes per call when no request waits, if no other number is given."""
ALTERNATIVES = 20
"""Alternatives of log-probabilities at most, if no other number is given; OpenAI's API has as many."""


def server_options(
    config: LlamaConfig,
    *,
    rows: int,
    slots: int,
    capacity: Capacity,
    places: int,
    tokens_per_call: int = TOKENS_PER_CALL,
    alternatives: int = ALTERNATIVES,
    longest_part: int = LONGEST_PART,
) -> EngineOptions:
    """Returns the sizes of an engine whose requests may have all options of a server; see `EngineOptions`."""
    return EngineOptions(
        rows=rows, slots=slots, longest_part=longest_part, tokens_per_call=tokens_per_call,
        alternatives=min(alternatives, config.vocab_size), has_penalty=True, capacity=capacity, places=places,
    )  # fmt: skip

"""Sizes of a server's engine, which the server and the plans of serving share."""

import functools
from collections.abc import Iterable

from aligner_jax.decoding.engine_options import EngineOptions
from aligner_jax.model.llama import LlamaConfig
from aligner_jax.peft.row_adapters import Capacity

TOKENS_PER_CALL = 4
"""Tokens that a server decodes per call when no request waits, if no other number is given."""
ALTERNATIVES = 20
"""Alternatives of log-probabilities at most, if no other number is given; OpenAI's API has as many."""
ROWS, ROWS_OF_A_CPU = 16, 8
"""Rows of a server, if no other number is given. On a CPU a step takes longer with every row, used or not: with
SmolLM2-135M in float32 on two cores 22 ms with one row, 29 ms with 8, 43 ms with 16 and 76 ms with 32."""
PREFIX_TOKENS = 16
"""Tokens of adapters that a row has room for at least, if no other number is given."""


def rows_on(platform: str) -> int:
    """Returns the number of rows of a server on this platform ("cpu", "gpu" or "tpu"), if no other number is given."""
    return ROWS_OF_A_CPU if platform == "cpu" else ROWS


def server_options(
    config: LlamaConfig,
    *,
    rows: int,
    slots: int,
    capacity: Capacity,
    places: int,
    tokens_per_call: int = TOKENS_PER_CALL,
    alternatives: int = ALTERNATIVES,
) -> EngineOptions:
    """Returns the sizes of an engine whose requests may have all options of a server; see `EngineOptions`."""
    return EngineOptions(
        rows=rows, slots=slots, tokens_per_call=tokens_per_call, alternatives=min(alternatives, config.vocab_size),
        has_penalty=True, capacity=capacity, places=places,
    )  # fmt: skip


def row_capacity(needs: Iterable[Capacity], prefix_tokens: int = PREFIX_TOKENS, rank: int = 0) -> Capacity:
    """Returns the capacity of a server's row: any two of its adapters, and at least the room that is asked for.

    Args:
      needs: capacities that the adapters need.
      prefix_tokens: tokens of adapters that a row has room for at least.
      rank: rank of LoRAs of q and v that a row has room for at least.
    """
    largest = functools.reduce(Capacity.joined, needs, Capacity())
    twice = Capacity(2 * largest.tokens, 2 * largest.rank, largest.factors, largest.biases)
    return twice.joined(Capacity(prefix_tokens, rank, ("q_ldnh", "v_ldkh") if rank else ()))

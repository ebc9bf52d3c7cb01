"""Sizes of an engine, on which the shapes of its programs depend."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from aligner_jax.decoding.lengths import padded_length, prompts_at_once
from aligner_jax.peft.row_adapters import Capacity
from aligner_jax.peft.row_sums import MOST_IN_A_SUM

TOKENS_PER_CALL = 8
"""Tokens that are decoded per call when no request waits."""
LONGEST_PART = 512
"""Tokens of a prompt that are prefilled at once at most, if no other number is given."""

LEAST_ROWS = 2
"""A single bfloat16 row is decoded beside a free one. XLA's CPU backend converts the matrix to float32 for a product
with one vector, but not with two. On TPUs, whose registers hold eight rows, the other row costs nothing."""


def least_rows(dtype: Any) -> int:
    """Returns the number of rows that an engine has at least, for a base of this dtype."""
    return LEAST_ROWS if jnp.dtype(dtype) == jnp.bfloat16 else 1


def rows_for(wanted: int, dtype: Any, parts: int) -> int:
    """Returns the number of rows of an engine that is to have `wanted`.

    Args:
      wanted: rows that are asked for.
      dtype: dtype of the base.
      parts: number of parts into which a mesh splits the rows; it divides the result.
    """
    return -(-max(wanted, least_rows(dtype)) // parts) * parts


def tokens_per_program(platform: str, tokens_per_call: int = TOKENS_PER_CALL) -> int:
    """Returns the number of tokens that one program decodes per row on this platform ("cpu", "gpu" or "tpu").

    On GPUs it is 1, so that no loop carries the weights. Calls are asynchronous, so the device does not wait for the
    host.
    """
    return 1 if platform == "gpu" else tokens_per_call


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Sizes of an engine.

    Attributes:
      rows: requests that run at once.
      slots: tokens of a request at most, prompt and new ones.
      longest_part: tokens of a prompt that are prefilled at once at most.
      tokens_per_call: tokens that are decoded per call when no request waits.
      alternatives: number of most probable tokens whose log-probabilities requests may ask for; None for no
        log-probabilities.
      has_penalty: True if requests may have a repetition penalty.
      capacity: capacity for adapters of a request's own; None if all requests have the engine's adapter alone.
      places: bound adapters that are kept on the device, at least; see `all_places`.
    """

    rows: int
    slots: int
    longest_part: int = LONGEST_PART
    tokens_per_call: int = TOKENS_PER_CALL
    alternatives: int | None = None
    has_penalty: bool = False
    capacity: Capacity | None = None
    places: int = 64

    def width(self, length: int) -> int | None:
        """Returns the padded length of a prompt; None if it is prefilled in parts."""
        return None if length > self.longest_part else min(padded_length(length), self.longest_part)

    def all_places(self, parts: int, platform: str) -> int:
        """Returns the number of places for adapters, with those that all prompts of one program have at the same time.

        Args:
          parts: number of parts into which a mesh splits the rows.
          platform: "cpu", "gpu" or "tpu".
        """
        shortest = self.width(1)
        assert shortest is not None
        return max(self.places, MOST_IN_A_SUM * prompts_at_once(shortest, self.rows, parts, platform))

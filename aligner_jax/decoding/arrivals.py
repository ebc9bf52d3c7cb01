"""Prompts on their way into the engine, as arrays whose shapes depend on a padded length alone."""

from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, UInt

from aligner_jax.decoding.choose import RowSampling
from aligner_jax.decoding.request import Request
from aligner_jax.decoding.state import Rows
from aligner_jax.model.llama import LlamaConfig
from aligner_jax.peft.row_adapters import RowAdapters
from aligner_jax.peft.row_sums import Sums, summed


@flax.struct.dataclass
class Arrivals:
    """Prompts that enter the engine together, with what their requests ask for.

    Attributes:
      tokens_bt: prompts, or parts of them, padded at their ends.
      lengths_b: numbers of these tokens.
      places_b: the rows that they enter.
      sampling: sampling options.
      limits_b, logprobs_b: see `Rows`.
      seeds_b, draws_b: seed of each row, and a number that tells its draws from others of the same seed.
      sums: adapters of the rows' own; None if rows have none.
    """

    tokens_bt: Int[Array, "b t"]
    lengths_b: Int[Array, " b"]
    places_b: Int[Array, " b"]
    sampling: RowSampling
    limits_b: Int[Array, " b"]
    logprobs_b: Bool[Array, " b"]
    seeds_b: UInt[Array, " b"]
    draws_b: Int[Array, " b"]
    sums: Sums | None = None

    def rows(self) -> Rows:
        """Returns the options of the rows."""
        keys_b = jax.vmap(lambda seed, draw: jax.random.fold_in(jax.random.key(seed), draw))(self.seeds_b, self.draws_b)
        return Rows(keys_b, self.sampling, self.limits_b, self.logprobs_b)

    def seen(self, config: LlamaConfig) -> Bool[Array, "b v"]:
        """Returns the tokens of the prompts."""
        b, t = self.tokens_bt.shape
        # Padding is written past the vocabulary, and dropped.
        token_bt = jnp.where(jnp.arange(t)[None] < self.lengths_b[:, None], self.tokens_bt, config.vocab_size)
        return jnp.zeros((b, config.vocab_size), bool).at[jnp.arange(b)[:, None], token_bt].set(True, mode="drop")

    def adapters(self, held: RowAdapters | None, dtype: Any) -> RowAdapters | None:
        """Returns the weighted sums of held adapters."""
        return None if held is None or self.sums is None else summed(held, self.sums, dtype)

    @classmethod
    def of(
        cls,
        requests: Sequence[Request],
        rows: Sequence[int],
        prompts: Sequence[Sequence[int]],
        *,
        width: int,
        group: int,
        sums: Sums | None = None,
    ) -> "Arrivals":
        """Returns NumPy arrays. Copies of the last prompt fill the group, and write the same row.

        Args:
          requests: requests of the prompts.
          rows: the rows that they enter.
          prompts: prompts or parts of them.
          width: length that they are padded to.
          group: number of prompts of the program.
          sums: adapters of the whole group; None leaves adapters out.
        """
        copies = group - len(requests)
        requests, rows = [*requests, *[requests[-1]] * copies], [*rows, *[rows[-1]] * copies]
        prompts = [*prompts, *[prompts[-1]] * copies]
        tokens_bt = np.zeros((group, width), np.int32)
        for row, ids in enumerate(prompts):
            tokens_bt[row, : len(ids)] = ids
        arrays: dict[str, Any] = {
            "tokens_bt": tokens_bt,
            "lengths_b": np.asarray([len(ids) for ids in prompts], np.int32),
            "places_b": np.asarray(rows, np.int32),
            "sampling": RowSampling.of([request.sampling for request in requests]),
            "limits_b": np.asarray([request.num_tokens for request in requests], np.int32),
            "logprobs_b": np.asarray([request.logprobs for request in requests]),
            "seeds_b": np.asarray([request.seed for request in requests], np.uint32),
            "draws_b": np.asarray([request.draw for request in requests], np.int32),
            "sums": sums,
        }
        return cls(**arrays)

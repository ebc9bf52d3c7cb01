"""Computes the canary of an adapter with the weights of its base."""

import functools
from collections.abc import Sequence
from typing import Protocol

import jax
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from aligner_jax.data.prompt_format import PromptFormat
from aligner_jax.data.token_ids import check_ids
from aligner_jax.data.tokenizer import Tokenizer
from aligner_jax.model.llama import LlamaConfig, Params, unembed
from aligner_jax.model.logical import num_parts, replicated
from aligner_jax.peft import Adapter, hidden_states
from aligner_jax.peft.canary import Canary, Row, candidates, choose, padded
from aligner_jax.runtime.global_batch import replicate


class LoadedBase(Protocol):
    """Fields of a `weights.base.Base` that a canary is computed with."""

    @property
    def config(self) -> LlamaConfig: ...
    @property
    def params(self) -> Params: ...
    @property
    def tokenizer(self) -> Tokenizer | None: ...
    @property
    def held_as(self) -> str: ...


def is_loaded(base: object) -> bool:
    """Returns True if the base has weights to compute with; shapes and traced arrays are none."""
    leaves = jax.tree.leaves(getattr(base, "params", None))
    return bool(leaves) and all(isinstance(x, jax.Array | np.ndarray) and not isinstance(x, Tracer) for x in leaves)


def compute_canary(base: LoadedBase, adapter: Adapter, prompt_format: PromptFormat | None = None) -> Canary | None:
    """Returns the canary of an adapter, by two forward passes over four prompts; None if a logit is not finite.

    With a base that is split over processes, all of them call this.

    Args:
      base: the base, with its weights.
      adapter: one adapter.
      prompt_format: format of the adapter's prompts.
    """
    rows = candidates(base.tokenizer, prompt_format, base.config.vocab_size, base.config.context_length)
    base_bv, adapted_bv = (next_logits(base.params, each, rows, base.config) for each in (None, adapter))
    return choose(rows, base_bv, adapted_bv, base.tokenizer, base.held_as)


def next_logits(
    params: Params, adapter: Adapter | None, rows: Sequence[Row], config: LlamaConfig
) -> Float[np.ndarray, "b v"]:
    """Returns the logits of the token after each prompt.

    Raises:
      InputError: the base has no embedding of a token.
    """
    for row in rows:
        check_ids(row.ids, config.vocab_size, what="the canary's prompt")
    inputs = replicate(padded(rows, num_parts("batch")))
    logits_bv = jax.device_get(_next_logits(params, adapter, *inputs, config=config))
    return np.asarray(logits_bv)[: len(rows)]


@functools.partial(jax.jit, static_argnames="config")
def _next_logits(
    params: Params,
    adapter: Adapter | None,
    tokens_bt: Int[Array, "b t"],
    last_b: Int[Array, " b"],
    *,
    config: LlamaConfig,
) -> Float[Array, "b v"]:
    # Padding needs no mask: it follows a row's tokens, and attention is causal.
    hidden_btd, params = hidden_states(params, adapter, tokens_bt, config=config)
    hidden_bd = jax.vmap(lambda hidden_td, last: hidden_td[last])(hidden_btd, last_b)
    return replicated(unembed(params, hidden_bd))

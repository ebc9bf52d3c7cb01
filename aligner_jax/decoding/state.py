"""Parts of the decoding loop: prefills prompts, inserts them into a state, and decodes one token in every row."""

import dataclasses
from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from aligner_jax.decoding.choose import RowSampling, choose
from aligner_jax.model.cache import KVCache, empty_cache, forward_cached, insert_rows, prefill_cache
from aligner_jax.model.llama import LlamaConfig, Params, unembed
from aligner_jax.model.logical import replicated
from aligner_jax.peft import Bound


@flax.struct.dataclass
class Prefilled:
    """Result of a prefill.

    Attributes:
      cache: keys and values of the prompts.
      logits_bv: float32 logits of the token that follows each prompt.
    """

    cache: KVCache
    logits_bv: Float[Array, "b v"]


@flax.struct.dataclass
class State:
    """State of the decoding loop. Every row has its own length and sampling options.

    Attributes:
      cache: keys and values of the tokens before token_b.
      token_b: next token of each row, which is chosen but not yet in the cache.
      done_b: True in rows that have ended or are free. Their length and token do not change.
      keys_b: a `jax.random.key` per row; a draw depends on it and on the position of the drawn token.
      sampling: sampling options of the rows.
    """

    cache: KVCache
    token_b: Int[Array, " b"]
    done_b: Bool[Array, " b"]
    keys_b: Array
    sampling: RowSampling


def empty_state(
    config: LlamaConfig, batch_size: int, slots: int, dtype: jnp.dtype, *, first_position: int = 0
) -> State:
    """Returns a state whose rows are all free; the arguments are those of `empty_cache`."""
    rows = jnp.arange(batch_size)
    return State(
        cache=empty_cache(config, batch_size, slots, dtype, first_position=first_position),
        token_b=jnp.zeros(batch_size, jnp.int32),
        done_b=jnp.ones(batch_size, bool),
        keys_b=jax.vmap(jax.random.key)(rows),
        sampling=RowSampling(jnp.zeros(batch_size), jnp.zeros(batch_size, jnp.int32), jnp.full(batch_size, jnp.inf)),
    )


def prefill(
    params: Params,
    bound: Bound,
    tokens_bt: Int[Array, "b t"],
    lengths_b: Int[Array, " b"],
    *,
    config: LlamaConfig,
    slots: int,
) -> Prefilled:
    """Prefills prompts; returns their cache and the logits of the next tokens.

    Args:
      params: parameters of the base.
      bound: an adapter bound to these parameters (`peft.bind`), or one per row (`peft.bind_rows`).
      tokens_bt: prompts, padded at their ends.
      lengths_b: lengths of the prompts, at least 1.
      config: configuration of the base.
      slots: number of slots per row, at least t. If `begin` follows, the slots must also hold the new tokens.
    """
    params = bound.on(params)
    hidden_bd, cache = prefill_cache(
        params, tokens_bt, lengths_b, config=config, slots=slots, adapted=bound.adapted,
        first_position=bound.first_position,
    )  # fmt: skip
    return Prefilled(cache, unembed(params, hidden_bd))


def begin(prefilled: Prefilled, sampling: RowSampling, keys_b: Array, stops: Int[Array, " stops"]) -> State:
    """Returns a state whose rows are the prefilled prompts, without copying their cache."""
    token_b = _choose(prefilled.logits_bv, prefilled.cache, keys_b, sampling)
    return State(prefilled.cache, token_b, jnp.isin(token_b, stops), keys_b, _replicated(sampling))


def insert(state: State, begun: State, rows: Sequence[int] | Int[Array, " b"]) -> State:
    """Replaces rows of a state by the rows of another, in place if the state is donated.

    Args:
      state: the state to change.
      begun: state of the new rows, with at most as many slots and the same first position.
      rows: index in `state` of each row of `begun`.
    """
    assert state.cache.first_position == begun.cache.first_position
    rows_b = jnp.asarray(rows)

    # Leaves of rank 5 are the cache's arrays; all others have one value per row.
    put = lambda mine, new: insert_rows(mine, new, rows_b) if mine.ndim == 5 else mine.at[rows_b].set(new)  # noqa: E731
    return jax.tree.map(put, state, begun)


def repeat_row(state: State, times: int) -> State:
    """Returns a state with `times` copies of the only row of `state`."""
    return jax.tree.map(lambda leaf: jnp.repeat(leaf, times, axis=1 if leaf.ndim == 5 else 0), state)


def step(params: Params, bound: Bound, state: State, stops: Int[Array, " stops"], *, config: LlamaConfig) -> State:
    """Decodes one token: every row that is not done writes its token to the cache and chooses the next one.

    Args:
      params: parameters of the base.
      bound: an adapter bound to these parameters (`peft.bind`), or one per row (`peft.bind_rows`).
      state: current state.
      stops: token ids that end a row.
      config: configuration of the base.
    """
    params = bound.on(params)
    hidden_b1d, cache = forward_cached(
        params, state.token_b[:, None], state.cache, config=config, adapted=bound.adapted
    )
    cache = dataclasses.replace(cache, lengths_b=jnp.where(state.done_b, state.cache.lengths_b, cache.lengths_b))
    token_b = _choose(unembed(params, hidden_b1d[:, -1]), cache, state.keys_b, state.sampling)
    token_b = jnp.where(state.done_b, state.token_b, token_b)
    return State(cache, token_b, state.done_b | jnp.isin(token_b, stops), state.keys_b, _replicated(state.sampling))


def _replicated(sampling: RowSampling) -> RowSampling:
    """Replicates the options, so that no device has to ask the others if any row samples."""
    return jax.tree.map(replicated, sampling)


def _choose(logits_bv: Float[Array, "b v"], cache: KVCache, keys_b: Array, sampling: RowSampling) -> Int[Array, " b"]:
    return choose(logits_bv, jax.vmap(jax.random.fold_in)(keys_b, cache.positions_b), sampling)

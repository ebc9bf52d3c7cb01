"""The decoding loop's parts: prefill prompts, insert them into the rows of a state, and step all rows by one token."""

import dataclasses
from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from aligner_jax.decoding.choose import RowSampling, choose
from aligner_jax.model.cache import KVCache, empty_cache, forward_cached, prefill_cache
from aligner_jax.model.llama import LlamaConfig, Params, unembed
from aligner_jax.model.logical import replicated
from aligner_jax.peft import Bound


@flax.struct.dataclass
class Prefilled:
    """Prompts that were read.

    Attributes:
      cache: their keys and values.
      logits_bv: of the token that follows each prompt, float32.
    """

    cache: KVCache
    logits_bv: Float[Array, "b v"]


@flax.struct.dataclass
class State:
    """Rows that are being continued, each at its own length and by its own rule.

    Attributes:
      cache: what each row has read.
      token_b: each row's next token, which is chosen and not read yet.
      done_b: True in rows that have ended or are free. Their length, token and draws stay as they are.
      keys_b: a `jax.random.key` for each row; a token's draw depends on it and on the token's position.
      sampling: how each row's tokens are chosen.
    """

    cache: KVCache
    token_b: Int[Array, " b"]
    done_b: Bool[Array, " b"]
    keys_b: Array
    sampling: RowSampling


def empty_state(
    config: LlamaConfig, batch_size: int, slots: int, dtype: jnp.dtype, *, first_position: int = 0
) -> State:
    """Returns a state of free rows; the arguments are those of `empty_cache`."""
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
    """Returns the prompts' cache, with `slots` slots a row, and the logits of what follows them.

    Args:
      bound: an adapter over these params (`peft.bind`), or one for each row (`peft.bind_rows`).
      tokens_bt: prompts, padded at their ends.
      lengths_b: tokens of each, at least one.
      slots: at least t. To continue all prompts at once (`begin`), also room for their new tokens.
    """
    params = bound.on(params)
    hidden_bd, cache = prefill_cache(
        params, tokens_bt, lengths_b, config=config, slots=slots, adapted=bound.adapted,
        first_position=bound.first_position,
    )  # fmt: skip
    return Prefilled(cache, unembed(params, hidden_bd))


def begin(prefilled: Prefilled, sampling: RowSampling, keys_b: Array, stops: Int[Array, " stops"]) -> State:
    """Returns the state whose rows are these prompts, without a copy of their cache."""
    token_b = _choose(prefilled.logits_bv, prefilled.cache, keys_b, sampling)
    return State(prefilled.cache, token_b, jnp.isin(token_b, stops), keys_b, _replicated(sampling))


def insert(state: State, begun: State, rows: Sequence[int] | Int[Array, " b"]) -> State:
    """Returns the state with the rows of another in place of its own, in place where the state is donated.

    Args:
      begun: with at most as many slots and the same first position.
      rows: of the state, one for each row of `begun`.
    """
    assert state.cache.first_position == begun.cache.first_position
    rows_b = jnp.asarray(rows)

    def written(x_lbksh, begun_lbksh):
        for i in range(len(rows_b)):
            x_lbksh = jax.lax.dynamic_update_slice(x_lbksh, begun_lbksh[:, i : i + 1], (0, rows_b[i], 0, 0, 0))
        return x_lbksh

    # Leaves without heads and slots are one value a row.
    put = lambda mine, new: written(mine, new) if mine.ndim == 5 else mine.at[rows_b].set(new)  # noqa: E731
    return jax.tree.map(put, state, begun)


def repeat_row(state: State, times: int) -> State:
    """Returns the state of a batch of so many copies of this one's only row."""
    return jax.tree.map(lambda leaf: jnp.repeat(leaf, times, axis=1 if leaf.ndim == 5 else 0), state)


def step(params: Params, bound: Bound, state: State, stops: Int[Array, " stops"], *, config: LlamaConfig) -> State:
    """Returns the state after every row that is not done has read its token and chosen the next.

    Args:
      bound: as in `prefill`, for the rows of the state.
      stops: tokens that end a row.
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
    """The same; so every device knows what all rows need without asking the others."""
    return jax.tree.map(replicated, sampling)


def _choose(logits_bv: Float[Array, "b v"], cache: KVCache, keys_b: Array, sampling: RowSampling) -> Int[Array, " b"]:
    return choose(logits_bv, jax.vmap(jax.random.fold_in)(keys_b, cache.positions_b), sampling)

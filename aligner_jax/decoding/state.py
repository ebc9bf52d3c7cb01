"""Parts of the decoding loop: prefills prompts, inserts them into a state, and decodes one token in every row."""

import dataclasses
from collections.abc import Callable, Sequence

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from aligner_jax.decoding.choose import RowSampling, Sampling, choose
from aligner_jax.decoding.logprobs import Logprobs, empty_logprobs, logprobs_of
from aligner_jax.model.cache import KVCache, empty_cache, forward_cached, insert_rows, prefill_cache
from aligner_jax.model.cache import laid_out as laid_out_cache
from aligner_jax.model.llama import LlamaConfig, Params, unembed
from aligner_jax.model.logical import constrain, replicated
from aligner_jax.peft import Bound
from aligner_jax.peft.row_adapters import Capacity, RowAdapters, empty_rows

NO_LIMIT = jnp.iinfo(jnp.int32).max


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
class Rows:
    """Options of the rows, as their requests ask for them.

    Attributes:
      keys_b: a `jax.random.key` per row; a draw depends on it and on the position of the drawn token.
      sampling: sampling options of the rows.
      limits_b: tokens of a row's text, with the prompt, at which it ends.
      logprobs_b: True for rows whose tokens' log-probabilities are wanted.
    """

    keys_b: Array
    sampling: RowSampling
    limits_b: Int[Array, " b"]
    logprobs_b: Bool[Array, " b"]

    @classmethod
    def of(cls, keys_b: Array, sampling: Sequence[Sampling]) -> "Rows":
        """Returns rows without limits and log-probabilities."""
        b = len(sampling)
        return cls(keys_b, RowSampling.of(sampling), jnp.full(b, NO_LIMIT), jnp.zeros(b, bool))


@flax.struct.dataclass
class State:
    """State of the decoding loop. Every row has its own length and options.

    Attributes:
      cache: keys and values of the tokens before token_b.
      token_b: last token of each row, which is chosen but not yet in the cache.
      done_b: True in rows that have ended or are free. Their length is 0, so that attention on TPUs does not read their
        slots, and their token does not change.
      rows: options of the rows.
      logprobs: log-probabilities of token_b; None if no row may ask for them.
      seen_bv: tokens of the rows' texts, for the repetition penalty; None if no row may have one.
      adapters: effects of the rows' own adapters; None if rows have none of their own.
    """

    cache: KVCache
    token_b: Int[Array, " b"]
    done_b: Bool[Array, " b"]
    rows: Rows
    logprobs: Logprobs | None = None
    seen_bv: Bool[Array, "b v"] | None = None
    adapters: RowAdapters | None = None

    def bound(self, shared: Bound) -> Bound:
        """Returns the adapter that all rows share with the rows' own adapters."""
        return with_rows(shared, self.adapters)


def with_rows(shared: Bound, adapters: RowAdapters | None) -> Bound:
    """Returns the adapter that all rows share with the rows' own adapters, if they have any."""
    return shared if adapters is None else dataclasses.replace(shared, adapted=(*shared.adapted, adapters.adapted()))


def empty_state(
    config: LlamaConfig,
    batch_size: int,
    slots: int,
    dtype: jnp.dtype,
    *,
    first_position: int = 0,
    alternatives: int | None = None,
    has_penalty: bool = False,
    capacity: Capacity | None = None,
) -> State:
    """Returns a state whose rows are all free.

    Args:
      config, batch_size, slots, dtype, first_position: arguments of `empty_cache`.
      alternatives: number of most probable tokens whose log-probabilities rows may ask for; None for no
        log-probabilities.
      has_penalty: True if rows may have a repetition penalty.
      capacity: capacity for adapters of the rows' own; None for rows without.
    """
    keys_b = jax.vmap(jax.random.key)(jnp.arange(batch_size))
    return State(
        cache=empty_cache(config, batch_size, slots, dtype, first_position=first_position),
        token_b=jnp.zeros(batch_size, jnp.int32),
        done_b=jnp.ones(batch_size, bool),
        rows=jax.tree.map(jnp.asarray, Rows.of(keys_b, [Sampling()] * batch_size)),
        logprobs=None if alternatives is None else empty_logprobs(batch_size, alternatives),
        seen_bv=jnp.zeros((batch_size, config.vocab_size), bool) if has_penalty else None,
        adapters=None if capacity is None else empty_rows(config, batch_size, capacity, dtype),
    )


def laid_out(state: State) -> State:
    """Returns the state with the sharding that all programs take and return: all but the largest arrays replicated."""

    def by_row(axis: int) -> Callable[[Array], Array]:
        return lambda x: constrain(x, *[None] * axis, "batch", *[None] * (x.ndim - axis - 1))

    rest = dataclasses.replace(state, cache=None, adapters=None, seen_bv=None)
    return dataclasses.replace(
        jax.tree.map(replicated, rest),
        cache=laid_out_cache(state.cache),
        adapters=jax.tree.map(by_row(1), state.adapters),
        seen_bv=jax.tree.map(by_row(0), state.seen_bv),
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


def continue_prefill(
    params: Params,
    bound: Bound,
    tokens_bt: Int[Array, "b t"],
    lengths_b: Int[Array, " b"],
    cache: KVCache,
    *,
    config: LlamaConfig,
) -> Prefilled:
    """Prefills the next part of prompts, after the parts that the cache has.

    Args:
      params, bound, config: see `prefill`.
      tokens_bt: next tokens of the prompts, padded at their ends.
      lengths_b: number of these tokens per row, at least 1.
      cache: cache of the preceding parts, with at least t free slots per row.
    """
    params, before_b = bound.on(params), cache.lengths_b
    hidden_btd, cache = forward_cached(params, tokens_bt, cache, config=config, adapted=bound.adapted)
    last_bd = jnp.take_along_axis(hidden_btd, (lengths_b - 1)[:, None, None], axis=1)[:, 0]
    return Prefilled(dataclasses.replace(cache, lengths_b=before_b + lengths_b), unembed(params, last_bd))


def begin(
    prefilled: Prefilled,
    rows: Rows,
    stops: Int[Array, " stops"],
    *,
    alternatives: int | None = None,
    seen_bv: Bool[Array, "b v"] | None = None,
    adapters: RowAdapters | None = None,
) -> State:
    """Returns a state whose rows are the prefilled prompts, without copying their cache.

    Args:
      prefilled: prompts after a prefill.
      rows: options of the rows.
      stops: token ids that end a row.
      alternatives: see `empty_state`.
      seen_bv: tokens of the prompts; None without repetition penalties.
      adapters: adapters of the rows' own.
    """
    empty = State(prefilled.cache, rows.limits_b, jnp.zeros(rows.limits_b.shape, bool), rows)
    if alternatives is not None:
        empty = dataclasses.replace(empty, logprobs=empty_logprobs(len(rows.limits_b), alternatives))
    return _chosen(dataclasses.replace(empty, seen_bv=seen_bv, adapters=adapters), prefilled.logits_bv, stops)


def insert(state: State, begun: State, rows: Sequence[int] | Int[Array, " b"]) -> State:
    """Replaces rows of a state by the rows of another, in place if the state is donated.

    Args:
      state: the state to change.
      begun: state of the new rows, with the same first position and the same optional parts.
      rows: index in `state` of each row of `begun`.
    """
    assert state.cache.first_position == begun.cache.first_position
    rows_b = jnp.asarray(rows)
    slots = min(state.cache.slots, begun.cache.slots)

    def put_cache(mine: Array, new: Array) -> Array:
        return insert_rows(mine, new[:, :, :, :slots], rows_b)

    def put(mine: Array, new: Array) -> Array:
        return mine.at[rows_b].set(new)

    def put_layers(mine: Array, new: Array) -> Array:
        return mine.at[:, rows_b].set(new)

    cache = dataclasses.replace(
        state.cache,
        k_lbksh=put_cache(state.cache.k_lbksh, begun.cache.k_lbksh),
        v_lbksh=put_cache(state.cache.v_lbksh, begun.cache.v_lbksh),
        lengths_b=put(state.cache.lengths_b, begun.cache.lengths_b),
    )
    rest = jax.tree.map(put, *(dataclasses.replace(each, cache=None, adapters=None) for each in (state, begun)))
    return dataclasses.replace(rest, cache=cache, adapters=jax.tree.map(put_layers, state.adapters, begun.adapters))


def end_rows(state: State, rows: Sequence[int] | Int[Array, " b"]) -> State:
    """Returns the state with these rows ended; indices past the last row are ignored."""
    return _with_done(state, state.done_b.at[jnp.asarray(rows)].set(True, mode="drop"))


def _with_done(state: State, done_b: Bool[Array, " b"]) -> State:
    lengths_b = jnp.where(done_b, 0, state.cache.lengths_b)
    return dataclasses.replace(state, cache=dataclasses.replace(state.cache, lengths_b=lengths_b), done_b=done_b)


def step(params: Params, bound: Bound, state: State, stops: Int[Array, " stops"], *, config: LlamaConfig) -> State:
    """Decodes one token: every row that is not done writes its token to the cache and chooses the next one.

    Args:
      params: parameters of the base.
      bound: an adapter bound to these parameters that all rows share (`peft.bind`), or one per row (`peft.bind_rows`).
      state: current state.
      stops: token ids that end a row.
      config: configuration of the base.
    """
    bound = state.bound(bound)
    params = bound.on(params)
    hidden_b1d, cache = forward_cached(
        params, state.token_b[:, None], state.cache, config=config, adapted=bound.adapted
    )
    return _chosen(dataclasses.replace(state, cache=cache), unembed(params, hidden_b1d[:, -1]), stops)


def _chosen(state: State, logits_bv: Float[Array, "b v"], stops: Int[Array, " stops"]) -> State:
    """Chooses the next token of the rows that are not done."""
    # Replicated, so that no device has to ask the others if any row samples.
    rows = jax.tree.map(replicated, state.rows)
    keys_b = jax.vmap(jax.random.fold_in)(rows.keys_b, state.cache.positions_b)
    token_b = choose(logits_bv, keys_b, rows.sampling, state.seen_bv)
    token_b = jnp.where(state.done_b, state.token_b, token_b)
    logprobs, seen_bv = state.logprobs, state.seen_bv
    if logprobs is not None:
        logprobs = logprobs_of(logits_bv, token_b, rows.logprobs_b & ~state.done_b, logprobs)
    if seen_bv is not None:
        seen_bv = seen_bv.at[jnp.arange(len(token_b)), token_b].set(True)
    # The text is the cache's tokens and the chosen one.
    done_b = state.done_b | jnp.isin(token_b, stops) | (state.cache.lengths_b + 1 >= rows.limits_b)
    state = dataclasses.replace(state, token_b=token_b, rows=rows, logprobs=logprobs, seen_bv=seen_bv)
    return _with_done(state, done_b)

"""The compiled programs of the engine. Their shapes depend on the engine and on padded lengths, never on requests."""

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from aligner_jax.decoding.arrivals import Arrivals
from aligner_jax.decoding.logprobs import Logprobs
from aligner_jax.decoding.state import (
    Prefilled,
    State,
    begin,
    continue_prefill,
    empty_state,
    end_rows,
    insert,
    laid_out,
    prefill,
    step,
    with_rows,
)  # fmt: skip
from aligner_jax.model.llama import LlamaConfig, Params
from aligner_jax.model.logical import replicated
from aligner_jax.peft import Adapter, Bound, bind
from aligner_jax.peft.row_adapters import Capacity, RowAdapters


@flax.struct.dataclass
class Tokens:
    """New tokens on their way to the host.

    Attributes:
      token_bt: tokens, one column per step.
      logprobs: their log-probabilities, with a trailing axis t; None if rows cannot ask for them.
    """

    token_bt: Int[Array, "b t"]
    logprobs: Logprobs | None


@functools.partial(jax.jit, static_argnames=("config",))
def bind_shared(params: Params, adapter: Adapter | tuple[Adapter, ...] | None, *, config: LlamaConfig) -> Bound:
    """Binds the adapter that all rows share."""
    return bind(adapter, params, config)


@functools.partial(
    jax.jit,
    static_argnames=(
        "config", "batch_size", "slots", "dtype", "first_position", "alternatives", "has_penalty", "capacity",
    ),
)  # fmt: skip
def make_state(
    *, config: LlamaConfig, batch_size: int, slots: int, dtype: Any, first_position: int, alternatives: int | None,
    has_penalty: bool, capacity: Capacity | None,
) -> State:  # fmt: skip
    """Returns `empty_state`, laid out."""
    return laid_out(
        empty_state(
            config, batch_size, slots, dtype, first_position=first_position, alternatives=alternatives,
            has_penalty=has_penalty, capacity=capacity,
        )
    )  # fmt: skip


@functools.partial(jax.jit, static_argnames=("config",), donate_argnames=("state",))
def admit(
    params: Params,
    shared: Bound,
    held: RowAdapters | None,
    state: State,
    arrivals: Arrivals,
    stops: Int[Array, " stops"],
    *,
    config: LlamaConfig,
) -> tuple[State, Tokens]:
    """Prefills whole prompts and inserts them; returns the state and the prompts' first tokens."""
    adapters = arrivals.adapters(held, params.embed_vd.dtype)
    bound, slots = with_rows(shared, adapters), arrivals.tokens_bt.shape[1]
    prefilled = prefill(params, bound, arrivals.tokens_bt, arrivals.lengths_b, config=config, slots=slots)
    seen_bv = None if state.seen_bv is None else arrivals.seen(config)
    return _inserted(state, prefilled, arrivals, adapters, seen_bv, stops)


@functools.partial(jax.jit, static_argnames=("config", "slots", "has_penalty"))
def begin_parts(
    params: Params,
    shared: Bound,
    held: RowAdapters | None,
    arrivals: Arrivals,
    *,
    config: LlamaConfig,
    slots: int,
    has_penalty: bool,
) -> State:
    """Prefills the first parts of prompts; returns an unfinished state of these rows alone."""
    adapters = arrivals.adapters(held, params.embed_vd.dtype)
    bound = with_rows(shared, adapters)
    prefilled = prefill(params, bound, arrivals.tokens_bt, arrivals.lengths_b, config=config, slots=slots)
    seen_bv = arrivals.seen(config) if has_penalty else None
    zeros_b = jnp.zeros_like(arrivals.lengths_b)
    rows = arrivals.rows()
    return laid_out(State(prefilled.cache, zeros_b, zeros_b > 0, rows, seen_bv=seen_bv, adapters=adapters))


@functools.partial(jax.jit, static_argnames=("config",), donate_argnames=("parts",))
def add_part(params: Params, shared: Bound, parts: State, arrivals: Arrivals, *, config: LlamaConfig) -> State:
    """Prefills the next parts of prompts."""
    return _added(params, shared, parts, arrivals, config)[0]


@functools.partial(jax.jit, static_argnames=("config",), donate_argnames=("state",))
def admit_parts(
    params: Params,
    shared: Bound,
    state: State,
    parts: State,
    arrivals: Arrivals,
    stops: Int[Array, " stops"],
    *,
    config: LlamaConfig,
) -> tuple[State, Tokens]:
    """Prefills the last parts of prompts and inserts them; returns the state and the prompts' first tokens."""
    parts, prefilled = _added(params, shared, parts, arrivals, config)
    return _inserted(state, prefilled, arrivals, parts.adapters, parts.seen_bv, stops)


@functools.partial(jax.jit, static_argnames=("config", "count"), donate_argnames=("state",))
def decode(
    params: Params,
    shared: Bound,
    state: State,
    ended: Int[Array, " b"],
    stops: Int[Array, " stops"],
    *,
    config: LlamaConfig,
    count: int,
) -> tuple[State, Tokens]:
    """Decodes `count` tokens in every row that is not done.

    Args:
      ended: rows that the host has ended; entries past the last row are ignored.
    """
    state = end_rows(state, ended)

    def one(state: State, _: None) -> tuple[State, tuple[Array, Logprobs | None]]:
        state = step(params, shared, state, stops, config=config)
        return state, (state.token_b, state.logprobs)

    if count == 1:
        # XLA's GPU compiler reads weights in place only if no loop carries them.
        state, made = one(state, None)
        made = jax.tree.map(lambda x: x[None], made)
    else:
        state, made = jax.lax.scan(one, state, None, length=count)
    token_bt, logprobs = jax.tree.map(lambda x_tb: replicated(jnp.moveaxis(x_tb, 0, -1)), made)
    return laid_out(state), Tokens(token_bt, logprobs)


def _added(
    params: Params, shared: Bound, parts: State, arrivals: Arrivals, config: LlamaConfig
) -> tuple[State, Prefilled]:
    prefilled = continue_prefill(
        params, parts.bound(shared), arrivals.tokens_bt, arrivals.lengths_b, parts.cache, config=config
    )
    seen_bv = None if parts.seen_bv is None else parts.seen_bv | arrivals.seen(config)
    return laid_out(dataclasses.replace(parts, cache=prefilled.cache, seen_bv=seen_bv)), prefilled


def _inserted(
    state: State,
    prefilled: Prefilled,
    arrivals: Arrivals,
    adapters: RowAdapters | None,
    seen_bv: Array | None,
    stops: Int[Array, " stops"],
) -> tuple[State, Tokens]:
    alternatives = None if state.logprobs is None else state.logprobs.top_bx.shape[1]
    begun = begin(prefilled, arrivals.rows(), stops, alternatives=alternatives, seen_bv=seen_bv, adapters=adapters)
    made = jax.tree.map(lambda x: replicated(x[..., None]), (begun.token_b, begun.logprobs))
    return laid_out(insert(state, begun, arrivals.places_b)), Tokens(*made)

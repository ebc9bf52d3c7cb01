"""Continue prompts: one prefill of the left-padded batch, then token by token from the cache."""

import functools
from collections.abc import Callable, Iterator, Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from aligner_jax.data.token_ids import check_ids
from aligner_jax.data.tokenizer import Tokenizer
from aligner_jax.decoding.choose import Sampling, choose
from aligner_jax.errors import InputError
from aligner_jax.model.cache import KVCache, empty_cache, forward_cached
from aligner_jax.model.llama import LlamaConfig, Params, unembed
from aligner_jax.model.logical import whole
from aligner_jax.peft import Adapter, Bound, bind
from aligner_jax.weights.base import Base

PROMPT_MULTIPLE = 16
"""Prompts are padded to a multiple of this, so that few different lengths are compiled."""
SINGLE_ROW_COPIES = 2
"""One row of bfloat16 is decoded as two equal ones: XLA's CPU backend converts the matrix to float32 for a product with
a single vector, and does not for one with two. On TPUs, whose registers hold eight rows, it costs nothing."""
TOKENS_A_CALL = 8
"""Tokens decoded between two looks at whether all rows have ended; 1 when text is streamed."""


def sample(
    base: Base,
    adapter: Adapter | None,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    on_tokens: Callable[[list[int | None]], None] | None = None,
) -> list[str]:
    """Continuations of the prompts, without the prompts, each up to its first stop token.

    Args:
      base: model and tokenizer. A beginning-of-sequence token is added where the tokenizer's files ask for one and the
        prompt does not begin with it already, as the text of `Tokenizer.render_chat` mostly does; the prompts are
        otherwise taken as they are (a chat template is the caller's to apply).
      adapter: or None for the base alone.
      max_new_tokens: how many tokens at most.
      temperature: 0 is greedy. The same seed gives row i the same draw whatever the other rows are.
      on_tokens: called after each step with one token a row (None in rows that have ended), to stream.

    Raises:
      InputError: no tokenizer, an empty batch or prompt, an impossible option, or more tokens than the model's context
        holds.
    """
    if base.tokenizer is None:
        raise InputError("the base has no tokenizer (no tokenizer.json or tokenizer.model beside its weights)")
    if isinstance(prompts, str):
        raise InputError("prompts is one string; give a list of them")
    tokenizer = base.tokenizer
    prompt_ids = [tokenizer.encode(prompt, bos=tokenizer.add_bos) for prompt in prompts]
    rows: list[list[int]] = [[] for _ in prompts]
    sampling = Sampling(temperature, top_k, top_p)
    stream = on_tokens is not None
    steps = continue_ids(
        base.params, adapter, prompt_ids, config=base.config, max_new_tokens=max_new_tokens, sampling=sampling,
        stop_ids=tokenizer.stop_ids, seed=seed, tokens_a_call=1 if stream else TOKENS_A_CALL,
    )  # fmt: skip
    for tokens in steps:
        for row, token in zip(rows, tokens, strict=True):
            if token is not None:
                row.append(token)
        if on_tokens is not None:
            on_tokens(tokens)
    return [continuation(tokenizer, ids, new) for ids, new in zip(prompt_ids, rows, strict=True)]


def continue_ids(
    params: Params,
    adapter: Adapter | None,
    prompt_ids: Sequence[Sequence[int]],
    *,
    config: LlamaConfig,
    max_new_tokens: int,
    sampling: Sampling,
    stop_ids: frozenset[int] = frozenset(),
    seed: int = 0,
    tokens_a_call: int = TOKENS_A_CALL,
    padded_length: int = 0,
) -> Iterator[list[int | None]]:
    """The same from token ids to token ids: yields one token a row and step, None in rows that have ended.

    Stop tokens end a row and are not yielded.

    Args:
      padded_length: prompts are padded to at least this, so that batches of other lengths share a program.

    Raises:
      InputError: an empty batch or prompt, an impossible seed, or more tokens than the model's context holds.
    """
    if not 0 <= seed < 2**32:
        raise InputError(f"seed is {seed}, but must be at least 0 and below 2**32")
    tokens_bt, valid_bt = _left_padded(prompt_ids, config, max_new_tokens, padded_length)
    stops = jnp.asarray(sorted(stop_ids) or [-1], jnp.int32)
    bound, state = prefill(
        params, adapter, jnp.asarray(tokens_bt), jnp.asarray(valid_bt), stops, jnp.uint32(seed),
        config=config, sampling=sampling, slots=tokens_bt.shape[1] + max_new_tokens,
    )  # fmt: skip
    done_b, made = np.zeros(len(prompt_ids), bool), 0
    while made < max_new_tokens and not done_b.all():
        state, tokens_bt = decode(params, bound, state, stops, config=config, sampling=sampling, count=tokens_a_call)
        for tokens_b in np.asarray(tokens_bt).T[: max_new_tokens - made, : len(prompt_ids)]:
            done_b |= np.isin(tokens_b, np.asarray(stops))
            if done_b.all():
                return
            yield [None if done else int(token) for done, token in zip(done_b, tokens_b, strict=True)]
        made += tokens_a_call


@flax.struct.dataclass
class _State:
    cache: KVCache
    token_b: Int[Array, " b"]
    done_b: Bool[Array, " b"]
    keys_b: Array


@functools.partial(jax.jit, static_argnames=("config", "sampling", "slots"))
def prefill(params, adapter, tokens_bt, valid_bt, stops, seed, *, config, sampling, slots):
    """The program that reads left-padded prompts: the adapter bound, and a state with room for `slots` tokens a row."""
    bound = bind(adapter, params, config)
    params = bound.on(params)
    cache = empty_cache(config, tokens_bt.shape[0], slots, params.embed_vd.dtype, first_position=bound.first_position)
    hidden_btd, cache = forward_cached(
        params, tokens_bt, cache, config=config, adapted=bound.adapted, valid_bt=valid_bt
    )
    keys_b = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(tokens_bt.shape[0]))
    token_b = _choose_last(params, hidden_btd, keys_b, cache, sampling)
    if len(token_b) == 1 and cache.k_lbksh.dtype == jnp.bfloat16:
        cache = cache.repeat_row(SINGLE_ROW_COPIES)
        token_b, keys_b = (jnp.repeat(x, SINGLE_ROW_COPIES) for x in (token_b, keys_b))
    return bound, _State(cache, token_b, jnp.isin(token_b, stops), keys_b)


@functools.partial(jax.jit, static_argnames=("config", "sampling", "count"), donate_argnames=("state",))
def decode(params: Params, bound: Bound, state: _State, stops, *, config, sampling, count):
    """The program that makes `count` tokens a row, of which the first is the one that the state holds already."""
    params = bound.on(params)

    def step(state: _State, _):
        hidden_b1d, cache = forward_cached(
            params, state.token_b[:, None], state.cache, config=config, adapted=bound.adapted
        )
        token_b = _choose_last(params, hidden_b1d, state.keys_b, cache, sampling)
        token_b = jnp.where(state.done_b, state.token_b, token_b)
        return _State(cache, token_b, state.done_b | jnp.isin(token_b, stops), state.keys_b), state.token_b

    state, tokens_tb = jax.lax.scan(step, state, None, length=count)
    return state, whole(tokens_tb.T)


def _choose_last(params, hidden_btd: Float[Array, "b t d"], keys_b, cache: KVCache, sampling: Sampling):
    keys_b = jax.vmap(jax.random.fold_in)(keys_b, cache.lengths_b)
    return choose(unembed(params, hidden_btd[:, -1]), keys_b, sampling)


def _left_padded(prompt_ids: Sequence[Sequence[int]], config: LlamaConfig, max_new_tokens: int, padded_length: int):
    if not prompt_ids:
        raise InputError("there are no prompts to continue")
    for index, ids in enumerate(prompt_ids):
        if not ids:
            raise InputError(f"prompt {index} is empty: it has no tokens to continue")
        check_ids(ids, config.vocab_size, what=f"prompt {index}")
    longest = max(map(len, prompt_ids))
    if max_new_tokens < 1 or longest + max_new_tokens > config.context_length:
        raise InputError(
            f"a prompt of {longest} tokens and {max_new_tokens} new ones do not fit "
            f"the model's context of {config.context_length}"
        )
    length = max(-(-longest // PROMPT_MULTIPLE) * PROMPT_MULTIPLE, padded_length)
    tokens_bt = np.zeros((len(prompt_ids), length), np.int32)
    valid_bt = np.zeros((len(prompt_ids), length), bool)
    for row, ids in enumerate(prompt_ids):
        tokens_bt[row, length - len(ids) :] = ids
        valid_bt[row, length - len(ids) :] = True
    return tokens_bt, valid_bt


def continuation(tokenizer: Tokenizer, prompt_ids: Sequence[int], new_ids: Sequence[int]) -> str:
    """The text that new tokens add to a prompt."""
    # Decoded together with its prompt, since some tokenizers strip a space from the first piece of any text.
    prompt = tokenizer.decode(prompt_ids)
    whole = tokenizer.decode([*prompt_ids, *new_ids])
    return whole[len(prompt) :] if whole.startswith(prompt) else tokenizer.decode(new_ids)

"""Continue prompts: one prefill of the batch, then token by token from the cache."""

import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from aligner_jax.data.token_ids import check_ids
from aligner_jax.data.tokenizer import Tokenizer
from aligner_jax.decoding.choose import RowSampling, Sampling
from aligner_jax.decoding.state import State, begin, prefill, repeat_row, step
from aligner_jax.errors import InputError
from aligner_jax.model.llama import LlamaConfig, Params
from aligner_jax.model.logical import replicated
from aligner_jax.peft import Adapter, Bound, bind
from aligner_jax.weights.base import Base

PROMPT_MULTIPLE = 16
"""Prompts of at most `LONG_PROMPT` tokens are padded to a multiple of this."""
LONG_PROMPT, LONG_PROMPT_MULTIPLE = 512, 128
"""Longer ones are padded to a multiple that the attention kernel takes; no more than a fifth of it is padding."""
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
    tokens_bt, lengths_b = _padded(prompt_ids, config, max_new_tokens, padded_length)
    slots = num_slots(max(padded_length, *map(len, prompt_ids)), max_new_tokens)
    stops = jnp.asarray(sorted(stop_ids) or [-1], jnp.int32)
    bound, state = read_prompts(
        params, adapter, jnp.asarray(tokens_bt), jnp.asarray(lengths_b), RowSampling.of([sampling] * len(prompt_ids)),
        stops, jnp.uint32(seed), config=config, slots=slots,
    )  # fmt: skip
    done_b, made = np.zeros(len(prompt_ids), bool), 0
    while made < max_new_tokens and not done_b.all():
        state, tokens_bt = make_tokens(params, bound, state, stops, config=config, count=tokens_a_call)
        for tokens_b in np.asarray(tokens_bt).T[: max_new_tokens - made, : len(prompt_ids)]:
            done_b |= np.isin(tokens_b, np.asarray(stops))
            if done_b.all():
                return
            yield [None if done else int(token) for done, token in zip(done_b, tokens_b, strict=True)]
        made += tokens_a_call


@functools.partial(jax.jit, static_argnames=("config", "slots"))
def read_prompts(
    params: Params,
    adapter: Adapter | None,
    tokens_bt: Int[Array, "b t"],
    lengths_b: Int[Array, " b"],
    sampling: RowSampling,
    stops: Int[Array, " stops"],
    seed: Int[Array, ""],
    *,
    config: LlamaConfig,
    slots: int,
) -> tuple[Bound, State]:
    """The program that reads prompts: the adapter bound, and a state with `slots` slots a row."""
    bound = bind(adapter, params, config)
    prefilled = prefill(params, bound, tokens_bt, lengths_b, config=config, slots=slots)
    keys_b = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(tokens_bt.shape[0]))
    state = begin(prefilled, sampling, keys_b, stops)
    if tokens_bt.shape[0] == 1 and state.cache.k_lbksh.dtype == jnp.bfloat16:
        state = repeat_row(state, SINGLE_ROW_COPIES)
    return bound, state


@functools.partial(jax.jit, static_argnames=("config", "count"), donate_argnames=("state",))
def make_tokens(
    params: Params, bound: Bound, state: State, stops: Int[Array, " stops"], *, config: LlamaConfig, count: int
) -> tuple[State, Int[Array, "b count"]]:
    """The program that makes `count` tokens a row, of which the first is the one that the state holds already."""

    def one(state: State, _):
        return step(params, bound, state, stops, config=config), state.token_b

    state, tokens_tb = jax.lax.scan(one, state, None, length=count)
    return state, replicated(tokens_tb.T)


def padded_size(length: int) -> int:
    """Returns the length that prompts of at most `length` tokens are padded to, so that few programs are compiled."""
    multiple = PROMPT_MULTIPLE if length <= LONG_PROMPT else LONG_PROMPT_MULTIPLE
    return -(-length // multiple) * multiple


def num_slots(length: int, max_new_tokens: int) -> int:
    """Returns the slots that rows need whose prompts have at most `length` tokens; padding has none of its own."""
    return max(padded_size(length), -(-(length + max_new_tokens) // PROMPT_MULTIPLE) * PROMPT_MULTIPLE)


def _padded(
    prompt_ids: Sequence[Sequence[int]], config: LlamaConfig, max_new_tokens: int, padded_length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Prompts padded at their ends, int32 [b, t], and their lengths, int32 [b]."""
    if not prompt_ids:
        raise InputError("there are no prompts to continue")
    for index, ids in enumerate(prompt_ids):
        if not ids:
            raise InputError(f"prompt {index} is empty: it has no tokens to continue")
        check_ids(ids, config.vocab_size, what=f"prompt {index}")
    lengths_b = np.asarray([len(ids) for ids in prompt_ids], np.int32)
    longest = int(lengths_b.max())
    if max_new_tokens < 1 or longest + max_new_tokens > config.context_length:
        raise InputError(
            f"a prompt of {longest} tokens and {max_new_tokens} new ones do not fit "
            f"the model's context of {config.context_length}"
        )
    tokens_bt = np.zeros((len(prompt_ids), padded_size(max(longest, padded_length))), np.int32)
    for row, ids in enumerate(prompt_ids):
        tokens_bt[row, : len(ids)] = ids
    return tokens_bt, lengths_b


def continuation(tokenizer: Tokenizer, prompt_ids: Sequence[int], new_ids: Sequence[int]) -> str:
    """The text that new tokens add to a prompt."""
    # Decoded together with its prompt, since some tokenizers strip a space from the first piece of any text.
    prompt = tokenizer.decode(prompt_ids)
    whole = tokenizer.decode([*prompt_ids, *new_ids])
    return whole[len(prompt) :] if whole.startswith(prompt) else tokenizer.decode(new_ids)

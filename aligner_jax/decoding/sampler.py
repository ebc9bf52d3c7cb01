"""Continues prompts: prefills the batch, then decodes from the cache token by token."""

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
"""Prompts of more than `LONG_PROMPT` tokens are padded to a multiple of `LONG_PROMPT_MULTIPLE`, which the attention
kernel supports; at most a fifth is padding. Slots are rounded up like prompts."""
SINGLE_ROW_COPIES = 2
"""A single bfloat16 row is decoded as this many copies. XLA's CPU backend converts the matrix to float32 for a product
with one vector, but not with two. On TPUs, whose registers hold eight rows, the copies cost nothing."""
TOKENS_PER_CALL = 8
"""Tokens decoded per call, after which the host checks if all rows have ended; 1 when text is streamed."""


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
    """Returns the continuation of each prompt up to its first stop token, without the prompt.

    Args:
      base: model and tokenizer. A BOS token is prepended if the tokenizer's files configure one and the prompt does not
        begin with it (the text of `Tokenizer.render_chat` usually does). No chat template is applied.
      adapter: an adapter; None for the base alone.
      prompts: texts to continue.
      max_new_tokens: maximum number of new tokens per row.
      temperature: temperature of the softmax; 0 is greedy.
      top_k, top_p: limits of sampling, see `choose.choose`; 0 and 1 turn them off.
      seed: seed of sampling. Row i has the same draws whatever the other rows are.
      on_tokens: callback for streaming, called after each step with one token per row (None in rows that have ended).

    Raises:
      InputError: the base has no tokenizer, the batch or a prompt is empty, an option is invalid, or the tokens exceed
        the model's context.
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
        stop_ids=tokenizer.stop_ids, seed=seed, tokens_per_call=1 if stream else TOKENS_PER_CALL,
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
    tokens_per_call: int = TOKENS_PER_CALL,
    padded_length: int = 0,
) -> Iterator[list[int | None]]:
    """Continues prompts of token ids; yields one token per row after each step, None in rows that have ended.

    Args:
      params: parameters of the base.
      adapter: an adapter; None for the base alone.
      prompt_ids: token ids of the prompts.
      config: configuration of the base.
      max_new_tokens: maximum number of new tokens per row.
      sampling: sampling options of all rows.
      stop_ids: token ids that end a row; they are not yielded.
      seed: seed of sampling. Row i has the same draws whatever the other rows are.
      tokens_per_call: tokens decoded per call of the compiled program.
      padded_length: minimum length that prompts are padded to, so that batches of different lengths share a program.

    Raises:
      InputError: the batch or a prompt is empty, the seed is out of range, or the tokens exceed the model's context.
    """
    if not 0 <= seed < 2**32:
        raise InputError(f"seed is {seed}, but must be at least 0 and below 2**32")
    tokens_bt, lengths_b = _padded(prompt_ids, config, max_new_tokens, padded_length)
    slots = num_slots(tokens_bt.shape[1], max_new_tokens, config.context_length)
    stops = jnp.asarray(sorted(stop_ids) or [-1], jnp.int32)
    bound, state = prefill_prompts(
        params, adapter, jnp.asarray(tokens_bt), jnp.asarray(lengths_b), RowSampling.of([sampling] * len(prompt_ids)),
        stops, jnp.uint32(seed), config=config, slots=slots,
    )  # fmt: skip
    done_b, made = np.zeros(len(prompt_ids), bool), 0
    while made < max_new_tokens and not done_b.all():
        state, tokens_bt = _decode(params, bound, state, stops, config=config, count=tokens_per_call)
        for tokens_b in tokens_bt.T[: max_new_tokens - made, : len(prompt_ids)]:
            done_b |= np.isin(tokens_b, np.asarray(stops))
            if done_b.all():
                return
            yield [None if done else int(token) for done, token in zip(done_b, tokens_b, strict=True)]
        made += tokens_per_call


@functools.partial(jax.jit, static_argnames=("config", "slots"))
def prefill_prompts(
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
    """Binds the adapter and prefills the prompts; returns both, with `slots` slots per row in the state's cache."""
    bound = bind(adapter, params, config)
    prefilled = prefill(params, bound, tokens_bt, lengths_b, config=config, slots=slots)
    keys_b = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(tokens_bt.shape[0]))
    state = begin(prefilled, sampling, keys_b, stops)
    if tokens_bt.shape[0] == 1 and state.cache.k_lbksh.dtype == jnp.bfloat16:
        state = repeat_row(state, SINGLE_ROW_COPIES)
    return bound, state


@functools.partial(jax.jit, static_argnames=("config", "count"), donate_argnames=("state",))
def decode_tokens(
    params: Params, bound: Bound, state: State, stops: Int[Array, " stops"], *, config: LlamaConfig, count: int
) -> tuple[State, Int[Array, "b count"]]:
    """Decodes `count` tokens per row. The first is `State.token_b`, which was chosen before the call."""
    # XLA's GPU compiler reads weights in place only if no loop carries them.
    if count == 1:
        return step(params, bound, state, stops, config=config), replicated(state.token_b[:, None])

    def one(state: State, _):
        return step(params, bound, state, stops, config=config), state.token_b

    state, tokens_tb = jax.lax.scan(one, state, None, length=count)
    return state, replicated(tokens_tb.T)


def tokens_per_program(platform: str, tokens_per_call: int = TOKENS_PER_CALL) -> int:
    """Returns the number of tokens that one program decodes per row on this platform ("cpu", "gpu" or "tpu").

    On GPUs it is 1, so that no loop carries the weights. Calls are asynchronous, so the device does not wait for the
    host.
    """
    return 1 if platform == "gpu" else tokens_per_call


def _decode(
    params: Params, bound: Bound, state: State, stops: Int[Array, " stops"], *, config: LlamaConfig, count: int
) -> tuple[State, np.ndarray]:
    """Decodes `count` tokens per row; returns the tokens on the host."""
    # The parameters may be NumPy arrays.
    (platform,) = {device.platform for device in state.token_b.devices()}
    each, tokens = tokens_per_program(platform, count), []
    for _ in range(count // each):
        state, tokens_bt = decode_tokens(params, bound, state, stops, config=config, count=each)
        tokens.append(tokens_bt)
    return state, np.concatenate(jax.device_get(tokens), axis=1)


def padded_size(length: int) -> int:
    """Returns the padded length of prompts of at most `length` tokens. It has few values, so few programs compile."""
    multiple = PROMPT_MULTIPLE if length <= LONG_PROMPT else LONG_PROMPT_MULTIPLE
    return -(-length // multiple) * multiple


def num_slots(padded_length: int, max_new_tokens: int, context_length: int) -> int:
    """Returns the number of slots per row for prompts that are padded to `padded_length` tokens.

    It holds the longest such prompt that, with its new tokens, fits the model's context. New tokens overwrite the
    padding. It does not depend on the prompts themselves, so that one padded length has one program.
    """
    return max(padded_length, min(padded_size(padded_length + max_new_tokens), context_length))


def _padded(
    prompt_ids: Sequence[Sequence[int]], config: LlamaConfig, max_new_tokens: int, padded_length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns prompts padded at their ends, int32 [b, t], and their lengths, int32 [b]."""
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
    """Returns the text that new tokens add to a prompt."""
    # New tokens are decoded after their prompt, since some tokenizers strip a space from the first piece of any text.
    prompt = tokenizer.decode(prompt_ids)
    whole = tokenizer.decode([*prompt_ids, *new_ids])
    return whole[len(prompt) :] if whole.startswith(prompt) else tokenizer.decode(new_ids)

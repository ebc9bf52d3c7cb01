"""Continues prompts with a base and one adapter, on an engine."""

from collections.abc import Callable, Iterator, Sequence

from aligner_jax.data.tokenizer import Tokenizer
from aligner_jax.decoding.choose import Sampling
from aligner_jax.decoding.engine import Engine
from aligner_jax.decoding.engine_options import TOKENS_PER_CALL, EngineOptions, least_rows
from aligner_jax.decoding.lengths import padded_slots, slots_of
from aligner_jax.decoding.request import Request, check_lengths, check_prompt, check_seed
from aligner_jax.errors import InputError
from aligner_jax.model.llama import LlamaConfig, Params
from aligner_jax.peft import Adapter
from aligner_jax.weights.base import Base

MOST_ROWS = 64
"""Rows of an engine at most, which bounds the memory of the cache; further prompts wait for a row."""


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
    on_step: Callable[[], None] | None = None,
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
      on_step: callback for progress, called after each step. Unlike `on_tokens` it does not slow decoding down: several
        steps end together.

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
        if on_step is not None:
            on_step()
    return [continuation(tokenizer, ids, new) for ids, new in zip(prompt_ids, rows, strict=True)]


def continue_ids(
    params: Params,
    adapter: Adapter | Sequence[Adapter] | None,
    prompt_ids: Sequence[Sequence[int]],
    *,
    config: LlamaConfig,
    max_new_tokens: int,
    sampling: Sampling,
    stop_ids: frozenset[int] = frozenset(),
    seed: int = 0,
    tokens_per_call: int = TOKENS_PER_CALL,
) -> Iterator[list[int | None]]:
    """Continues prompts of token ids; yields one token per row after each step, None in rows that have ended.

    Args:
      params: parameters of the base.
      adapter: an adapter; None for the base alone.
      prompt_ids: token ids of the prompts. At most `MOST_ROWS` run at once, and a step is yielded when the last ones
        have made it.
      config: configuration of the base.
      max_new_tokens: maximum number of new tokens per row.
      sampling: sampling options of all rows.
      stop_ids: token ids that end a row; they are not yielded.
      seed: seed of sampling. Row i has the same draws whatever the other rows are.
      tokens_per_call: tokens decoded per call of the compiled program.

    Raises:
      InputError: the batch or a prompt is empty, the seed is out of range, or the tokens exceed the model's context.
    """
    engine = make_engine(
        params, adapter, prompt_ids, config=config, max_new_tokens=max_new_tokens, stop_ids=stop_ids, seed=seed,
        sampling=sampling, tokens_per_call=tokens_per_call,
    )  # fmt: skip
    requests = [Request(ids, max_new_tokens, sampling, seed=seed, draw=index) for index, ids in enumerate(prompt_ids)]
    rows: list[list[int | None]] = [[] for _ in prompt_ids]
    given = 0
    for new in engine.run(requests):
        rows[new.request].append(None if new.end == "stop" else new.token)
        if new.end == "length":
            rows[new.request].append(None)
        # A row that has ended is over at all later steps.
        while all(len(row) > given or (row and row[-1] is None) for row in rows):
            step = [row[given] if len(row) > given else None for row in rows]
            given += 1
            if all(token is None for token in step):
                return
            yield step


def make_engine(
    params: Params,
    adapter: Adapter | Sequence[Adapter] | None,
    prompt_ids: Sequence[Sequence[int]],
    *,
    config: LlamaConfig,
    max_new_tokens: int,
    sampling: Sampling,
    stop_ids: frozenset[int],
    seed: int,
    tokens_per_call: int = TOKENS_PER_CALL,
) -> Engine:
    """Returns an engine for these prompts; see `continue_ids` for the arguments and errors."""
    check_seed(seed)
    if not prompt_ids:
        raise InputError("there are no prompts to continue")
    for index, ids in enumerate(prompt_ids):
        check_prompt(ids, config, f"prompt {index}")
    longest = max(map(len, prompt_ids))
    check_lengths(longest, max_new_tokens, config)
    dtype = params.embed_vd.dtype
    options = EngineOptions(
        rows=max(min(len(prompt_ids), MOST_ROWS), least_rows(dtype)),
        slots=slots_of(longest, max_new_tokens, config.context_length),
        longest_part=padded_slots(longest),
        tokens_per_call=tokens_per_call,
        has_penalty=sampling.repetition_penalty != 1,
    )
    return Engine(params, config, options, adapter=adapter, stop_ids=stop_ids)


def continuation(tokenizer: Tokenizer, prompt_ids: Sequence[int], new_ids: Sequence[int]) -> str:
    """Returns the text that new tokens add to a prompt."""
    # New tokens are decoded after their prompt, since some tokenizers strip a space from the first piece of any text.
    prompt = tokenizer.decode(prompt_ids)
    whole = tokenizer.decode([*prompt_ids, *new_ids])
    return whole[len(prompt) :] if whole.startswith(prompt) else tokenizer.decode(new_ids)

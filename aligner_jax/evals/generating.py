"""Generates continuations of prompts in batches of static shapes, and stores every finished batch."""

import hashlib
import json
from collections.abc import Sequence
from typing import NamedTuple

from rich.console import Console

from aligner_jax.decoding.choose import Sampling
from aligner_jax.decoding.sampler import TOKENS_PER_CALL, continue_ids, padded_size
from aligner_jax.errors import InputError
from aligner_jax.evals.answer_text import AloneAnswer, ContinuedAnswer
from aligner_jax.evals.batches import in_batches, length_bucket
from aligner_jax.evals.result_store import ResultStore
from aligner_jax.evals.subject import Subject
from aligner_jax.runtime.progress import Count


class Prompt(NamedTuple):
    """A prompt and its decoding options.

    Attributes:
      ids: token ids of the prompt, including the BOS if it has one.
      max_new_tokens: new tokens at most.
      sampling: temperature, top-k and top-p; greedy by default.
      until: stop texts. The answer ends before the first of them.
      number: index that distinguishes repeated samples for the same prompt; not needed for greedy answers.
      alone: decodes the answer without its prompt (`AloneAnswer`) instead of with it (`ContinuedAnswer`).
    """

    ids: tuple[int, ...]
    max_new_tokens: int
    sampling: Sampling = Sampling()
    until: tuple[str, ...] = ()
    number: int = 0
    alone: bool = False

    @property
    def key(self) -> str:
        """Hash of all fields: the key of the answer in `ResultStore`."""
        parts = [self.ids, self.max_new_tokens, list(vars(self.sampling).values()), self.until, self.number]
        parts += ["alone"] if self.alone else []
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def encoded(subject: Subject, text: str) -> tuple[int, ...]:
    """Returns the token ids of a prompt as in training: with a BOS if the tokenizer's files ask for one."""
    return tuple(subject.tokenizer.encode(text, bos=subject.tokenizer.add_bos))


def generate(
    subject: Subject,
    prompts: Sequence[Prompt],
    store: ResultStore,
    console: Console,
    *,
    seed: int = 0,
    what: str = "answers",
) -> list[str]:
    """Returns the answers to the prompts. Answers that `store` has are not generated again.

    Args:
      prompts: prompts that, with their new tokens, fit the model's context.
      store: finished answers by `Prompt.key`; finished batches are added to it.
      seed: sampling seed. The same prompts, batch size and seed give the same answers.
      what: noun for the answers in the progress line.

    Raises:
      InputError: the base has no embedding of a token, a prompt is empty or does not fit the context with its new
        tokens, or a finished batch cannot be written.
    """
    unique = list({prompt.key: prompt for prompt in prompts}.values())
    for number, prompt in enumerate(prompts, 1):
        _check(subject, prompt, number)
    # The prompts of a batch share their decoding options: a batch runs until all its rows have ended, and its random
    # draws depend on its rows.
    ways = [(prompt.sampling, prompt.max_new_tokens, prompt.until) for prompt in unique]
    total, done = len(unique), 0
    batches: list[list[int]] = []
    for way in dict.fromkeys(ways):
        numbers = [i for i, each in enumerate(ways) if each == way]
        buckets = [_bucket(subject, unique[i]) for i in numbers]
        batches += [[numbers[i] for i in batch] for batch in in_batches(buckets, subject.batch_size)]
    unfinished = [batch for batch in batches if not all(unique[i].key in store for i in batch)]
    done = total - sum(map(len, unfinished))
    with Count(console, what, total=total, done=done) as count:
        for batch in unfinished:
            members = [unique[i] for i in batch]
            # The seed depends on the batch's first prompt, so that no two batches draw the same random numbers.
            texts = _generated(subject, members, (seed + batch[0] * 1_000_003) % 2**32)
            store.add({prompt.key: text for prompt, text in zip(members, texts, strict=True)})
            count.add(len(batch))
    return [store[prompt.key] for prompt in prompts]


def _check(subject: Subject, prompt: Prompt, number: int) -> None:
    # Messages give the prompt's number and not its text, which may be offensive.
    context = subject.base.config.context_length
    if not prompt.ids:
        raise InputError(f"prompt {number} is empty: it has no tokens to continue")
    subject.tokenizer.check_ids(prompt.ids)
    if len(prompt.ids) + prompt.max_new_tokens > context:
        raise InputError(
            f"prompt {number} has {len(prompt.ids)} tokens, which with {prompt.max_new_tokens} new ones do not fit the "
            f"model's context of {context}"
        )


def prompt_bucket(length: int, max_new_tokens: int, context_length: int) -> int:
    """Returns the padded length of a prompt of `length` tokens, which fits the context with its new tokens."""
    # The limit is a padded length, since the sampler pads the longest prompts too.
    return length_bucket(length, padded_size(context_length - max_new_tokens))


def _bucket(subject: Subject, prompt: Prompt) -> int:
    return prompt_bucket(len(prompt.ids), prompt.max_new_tokens, subject.base.config.context_length)


def _generated(subject: Subject, prompts: Sequence[Prompt], seed: int) -> list[str]:
    first = prompts[0]
    # Copies of the last prompt fill the batch. The loop does not wait for them to end.
    ids = [prompt.ids for prompt in prompts] + [prompts[-1].ids] * (subject.batch_size - len(prompts))
    answers = [_answer(subject, prompt) for prompt in prompts]
    over = [False] * len(prompts)
    steps = continue_ids(
        subject.base.params, subject.adapter, ids, config=subject.base.config, max_new_tokens=first.max_new_tokens,
        sampling=first.sampling, stop_ids=subject.tokenizer.stop_ids, seed=seed,
        padded_length=_bucket(subject, first),
    )  # fmt: skip
    for step, tokens in enumerate(steps, 1):
        for number, token in enumerate(tokens[: len(prompts)]):
            if token is None:
                over[number] = True
            else:
                answers[number].add(token)
        if step % TOKENS_PER_CALL == 0:
            over = [ended or answer.is_over() for ended, answer in zip(over, answers, strict=True)]
        if all(over):
            break
    return [answer.text() for answer in answers]


def _answer(subject: Subject, prompt: Prompt) -> AloneAnswer | ContinuedAnswer:
    if prompt.alone:
        return AloneAnswer(subject.tokenizer, prompt.until)
    return ContinuedAnswer(subject.tokenizer, prompt.ids, prompt.until)

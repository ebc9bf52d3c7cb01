"""Generates answers to prompts on an engine, and stores them as they end."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rich.console import Console

from aligner_jax.decoding.choose import Sampling
from aligner_jax.decoding.engine import Engine
from aligner_jax.decoding.engine_options import TOKENS_PER_CALL, EngineOptions
from aligner_jax.decoding.lengths import padded_slots
from aligner_jax.decoding.request import Request
from aligner_jax.errors import InputError
from aligner_jax.evals.answer_text import AloneAnswer, ContinuedAnswer
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
        sampling = list(vars(self.sampling).values())
        # Options that came later change the key only if they are used, so that stored answers keep theirs.
        sampling = sampling[:3] if self.sampling == Sampling(*sampling[:3]) else sampling
        parts = [self.ids, self.max_new_tokens, sampling, self.until, self.number]
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
      store: finished answers by `Prompt.key`; new ones are added to it, about a batch at a time.
      seed: sampling seed. The same prompts, batch size and seed give the same answers.
      what: noun for the answers in the progress line.

    Raises:
      InputError: the base has no embedding of a token, a prompt is empty or does not fit the context with its new
        tokens, or finished answers cannot be written.
    """
    unique = list({prompt.key: prompt for prompt in prompts}.values())
    for number, prompt in enumerate(prompts, 1):
        _check(subject, prompt, number)
    # Draws depend on a prompt's place among all, so that a resumed run has those of an uninterrupted one.
    unfinished = {i: prompt for i, prompt in enumerate(unique) if prompt.key not in store}
    if unfinished:
        with Count(console, what, total=len(unique), done=len(unique) - len(unfinished)) as count:
            _generate(subject, unique, unfinished, store, count, seed)
    return [store[prompt.key] for prompt in prompts]


def _generate(
    subject: Subject,
    unique: Sequence[Prompt],
    unfinished: Mapping[int, Prompt],
    store: ResultStore,
    count: Count,
    seed: int,
) -> None:
    """Generates answers, and stores them whenever as many have ended as there are rows."""
    # The sizes are those of all prompts, so that a resumed run has the same programs.
    options = engine_options(
        subject.batch_size,
        max(len(prompt.ids) for prompt in unique),
        max(len(prompt.ids) + prompt.max_new_tokens for prompt in unique),
        has_penalty=any(prompt.sampling.repetition_penalty != 1 for prompt in unique),
    )
    engine = Engine(
        subject.base.params, subject.base.config, options, adapter=subject.adapter,
        stop_ids=subject.tokenizer.stop_ids,
    )  # fmt: skip
    # The longest prompts come first, so that a lack of memory shows at once.
    order = sorted(unfinished, key=lambda i: -len(unfinished[i].ids))
    numbers = {
        engine.add(Request(unique[i].ids, unique[i].max_new_tokens, unique[i].sampling, seed=seed, draw=i)): unique[i]
        for i in order
    }
    answers = {number: _answer(subject, prompt) for number, prompt in numbers.items()}
    made = dict.fromkeys(numbers, 0)
    ready: dict[str, str] = {}
    while not engine.is_idle:
        for new in engine.turn():
            # The last turn may have brought tokens after a stop text.
            if new.request not in answers:
                continue
            answer = answers[new.request]
            made[new.request] += 1
            if new.end != "stop":
                answer.add(new.token)
            checked = made[new.request] % TOKENS_PER_CALL == 0
            if new.end or (checked and answer.is_over()):
                engine.cancel(new.request)
                ready[numbers[new.request].key] = answers.pop(new.request).text()
        if len(ready) >= subject.batch_size or engine.is_idle:
            store.add(ready)
            count.add(len(ready))
            ready = {}


def engine_options(rows: int, longest_prompt: int, most_tokens: int, *, has_penalty: bool = False) -> EngineOptions:
    """Returns the sizes of the engine that generates answers.

    Args:
      rows: answers that are generated at once.
      longest_prompt: tokens of the longest prompt.
      most_tokens: tokens of a prompt and its new tokens at most.
      has_penalty: True if prompts may have a repetition penalty.
    """
    return EngineOptions(
        rows=rows,
        slots=padded_slots(most_tokens),
        longest_part=padded_slots(longest_prompt),
        has_penalty=has_penalty,
    )


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


def _answer(subject: Subject, prompt: Prompt) -> AloneAnswer | ContinuedAnswer:
    if prompt.alone:
        return AloneAnswer(subject.tokenizer, prompt.until)
    return ContinuedAnswer(subject.tokenizer, prompt.ids, prompt.until)

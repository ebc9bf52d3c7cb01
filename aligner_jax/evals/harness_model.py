"""Model class for lm-evaluation-harness, which the extra `eval` installs."""

import collections
import functools
import os
from collections.abc import Sequence
from typing import Any, cast

from rich.console import Console

from aligner_jax.decoding.choose import Sampling
from aligner_jax.errors import InputError
from aligner_jax.evals.generating import Prompt, generate
from aligner_jax.evals.harness_chat import render_with_or_without_system
from aligner_jax.evals.result_store import ResultStore
from aligner_jax.evals.scoring import Continuation, score
from aligner_jax.evals.subject import Subject
from aligner_jax.files.extras import pip_line
from aligner_jax.files.fields import Fields

DEFAULT_NEW_TOKENS = 256
"""New tokens for tasks that set no limit; the harness's own default."""
DEFAULT_TOP_K = 50
"""Top-k for tasks that sample and set none; the default of transformers' `generate`, which the `hf` backend uses."""
_LIMITS = {"max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"}
_GENERATION = {"until", "do_sample", "temperature", "top_k", "top_p", *_LIMITS}
_WHERE = "a task's generation_kwargs"


def harness_model(subject: Subject, store: ResultStore, console: Console, *, seed: int = 0) -> Any:
    """Returns an `lm_eval.api.model.LM` of a base, with or without an adapter, for `lm_eval.simple_evaluate(model=…)`.

    It gives the same results as the harness's own `hf` backend, since it treats texts in the same way:

    - A context and its continuation are encoded together.
    - A BOS is added if the tokenizer's files ask for one and the text does not begin with it.
    - An empty context (or one of white space) is replaced by the BOS, or by the EOS if there is no BOS.
    - Requests that are too long lose their beginning, except in `loglikelihood_rolling`, which splits them in windows.
    - Chats are rendered as in `harness_chat`, and answers are decoded and stopped as in `answer_text.AloneAnswer`.

    There is one difference: answers also end at tokens that end an assistant's turn, while `hf` stops only at the
    tokens that the model's files name.

    Args:
      subject: base and adapter.
      store: finished requests by their tokens, which are not computed again.
      console: console for progress lines.
      seed: seed for tasks that sample.

    Raises:
      InputError: lm-eval is not installed, or the base has no tokenizer, or its tokenizer has neither a BOS nor an EOS.
    """
    return model_class()(subject, store, console, seed)


def import_lm_eval() -> Any:
    """Imports and returns the package `lm_eval`. Raises InputError if it is not installed."""
    # Its progress bars would garble ours, and its bootstrap would fork a process that has threads.
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("DISABLE_MULTIPROC", "1")
    try:
        import lm_eval
    except ImportError:
        raise InputError(f"the evaluation 'harness' needs the package lm-eval: {pip_line('eval')}") from None
    return lm_eval


@functools.cache
def model_class() -> Any:
    """Returns the model class. It is defined at the first call, since its parent belongs to an optional package."""
    import_lm_eval()
    from lm_eval.api.model import TemplateLM

    class AlignerLM(_Model, TemplateLM):
        pass

    return AlignerLM


class _Model:
    """Methods of the model class that are this project's own."""

    def __init__(self, subject: Subject, store: ResultStore, console: Console, seed: int) -> None:
        super().__init__()
        self._subject, self._store, self._console, self._seed = subject, store, console, seed
        tokenizer = subject.tokenizer
        first = tokenizer.bos_id if tokenizer.bos_id is not None else tokenizer.eos_id
        if first is None:
            raise InputError("the base's tokenizer names neither a BOS nor an EOS token, of which one is needed")
        self._prefix_id = first
        self._bos = tokenizer.backend.token(first)
        self._said: set[str] = set()

    def _say_once(self, sentence: str) -> None:
        if sentence not in self._said:
            self._said.add(sentence)
            self._console.out(sentence)

    @property
    def eot_token_id(self) -> int:
        eos = self._subject.tokenizer.eos_id
        return self._prefix_id if eos is None else eos

    @property
    def prefix_token_id(self) -> int:
        return self._prefix_id

    @property
    def max_length(self) -> int:
        return self._subject.base.config.context_length

    @property
    def tokenizer_name(self) -> str:
        return f"aligner_jax {self._subject.tokenizer.chat_template}"

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return self._subject.tokenizer.chat_template if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        text, without_system = render_with_or_without_system(
            self._subject.tokenizer, chat_history, add_generation_prompt=add_generation_prompt
        )
        if without_system:
            self._say_once("the chat template refuses chats with a system message, which is left out of them")
        return text

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        tokenizer = self._subject.tokenizer
        adds = tokenizer.add_bos and not string.startswith(self._bos)
        return tokenizer.encode(string, bos=adds if add_special_tokens is None else add_special_tokens)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        for context, continuation in map(_texts, requests):
            # The harness reads the first token of the continuation if the context is empty.
            if not continuation or not (context or self.tok_encode(continuation, add_special_tokens=False)):
                raise InputError(f"the continuation of {_short(context)} is empty, and so has no likelihood")
        return cast(Any, super()).loglikelihood(requests, disable_tqdm=True)

    def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        continuations = []
        for (context, continuation), context_ids, ids in requests:
            if not 0 < len(ids) <= self.max_length:
                raise InputError(
                    f"the continuation {_short(continuation)} of {_short(context)} has {len(ids)} tokens, but "
                    f"should have 1 to {self.max_length}, the model's context"
                )
            # A context of white space has no tokens: the harness moves trailing white space to the continuation.
            whole = [*(context_ids or [self._prefix_id]), *ids]
            continuations.append(Continuation(tuple(whole[-(self.max_length + 1) :]), len(ids)))
        scores = score(self._subject, continuations, self._store, self._console)
        return [(each.log_likelihood, each.is_greedy) for each in scores]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        windows: list[Continuation] = []
        counts: list[int] = []
        for (text,) in map(_texts, requests):
            parts = get_rolling_token_windows(
                token_list=self.tok_encode(text), prefix_token=self.prefix_token_id, max_seq_len=self.max_length,
                context_len=1,
            )  # fmt: skip
            pairs = [make_disjoint_window(pair) for pair in parts]
            windows += [Continuation((*context, *ids), len(ids)) for context, ids in pairs]
            counts.append(len(pairs))
        scores = iter(score(self._subject, windows, self._store, self._console))
        return [sum(next(scores).log_likelihood for _ in range(count)) for count in counts]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        seen: collections.Counter[Prompt] = collections.Counter()
        prompts = []
        for context, wanted in (request.args for request in requests):
            prompt = self._prompt(context, _options(wanted))
            # A task that repeats a request wants different samples.
            prompts.append(prompt._replace(number=seen[prompt]))
            seen[prompt] += prompt.sampling.temperature > 0
        return generate(self._subject, prompts, self._store, self._console, seed=self._seed)

    def _prompt(self, context: str, options: Fields) -> Prompt:
        new = options.integer("max_gen_toks", least=0)
        if not 0 < new < self.max_length:
            raise InputError(f"a task generates {new} tokens, but the model's context holds {self.max_length}")
        ids = self.tok_encode(_text(context))[-(self.max_length - new) :]
        return Prompt(tuple(ids), new, _sampling(options), self._stops(options), alone=True)

    def _stops(self, options: Fields) -> tuple[str, ...]:
        """Returns the stop texts, which include the text of the EOS token."""
        eos = self._subject.tokenizer.backend.token(self.eot_token_id)
        stops = options.texts("until")
        return tuple(stops if eos in stops else [*stops, eos])


def _options(wanted: object) -> Fields:
    """Returns a task's generation_kwargs with the harness's defaults. Raises InputError if they are invalid."""
    from lm_eval.models.utils import normalize_gen_kwargs

    if not isinstance(wanted, dict):
        raise InputError(f"{_WHERE} are {_short(str(wanted))}, and not an object")
    unknown = sorted(str(name) for name in wanted.keys() - _GENERATION)
    if unknown:
        raise InputError(f"a task generates with {unknown[0]!r}, which this model does not have")
    until = wanted.get("until")
    try:
        options = normalize_gen_kwargs({**wanted, "until": [] if until is None else until}, DEFAULT_NEW_TOKENS)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{_WHERE} cannot be read: {error}") from None
    return Fields(dict(options), _WHERE)


def _sampling(options: Fields) -> Sampling:
    """Reads the options as transformers' `generate` does: greedy, unless the task samples or sets a temperature."""
    temperature = options.number("temperature", 1.0 if options.flag("do_sample") else 0.0, least=0)
    if not options.flag("do_sample", temperature > 0):
        return Sampling()
    top_p = options.number("top_p", 1.0, most=1)
    return Sampling(temperature, options.integer("top_k", DEFAULT_TOP_K, least=0), top_p)


def _texts(request: Any) -> list[str]:
    return [_text(argument) for argument in request.args]


def _text(argument: object) -> str:
    """Returns a request's text. Raises InputError if it is not a string."""
    if not isinstance(argument, str):
        raise InputError(f"a task asks for {_short(repr(argument))}, which is no text: see its doc_to_text and target")
    return argument


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:18]}…{text[-18:]}")

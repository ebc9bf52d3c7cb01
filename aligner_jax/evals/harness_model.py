"""The model class that lm-evaluation-harness runs its tasks with; installed by the extra `eval`."""

import collections
import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from aligner_jax.decoding.choose import Sampling
from aligner_jax.errors import InputError
from aligner_jax.evals.generating import Prompt, generate
from aligner_jax.evals.kept import Kept
from aligner_jax.evals.scoring import Continuation, score
from aligner_jax.evals.subject import Subject

DEFAULT_NEW_TOKENS = 256
"""Of tasks that name no number; the harness's own."""
DEFAULT_TOP_K = 50
"""Of tasks that sample and name none: that of transformers' `generate`, with which the `hf` backend samples."""
_GENERATION = {"until", "do_sample", "temperature", "top_k", "top_p", "max_gen_toks"}


def harness_model(subject: Subject, kept: Kept, console: Console, *, seed: int = 0) -> Any:
    """An `lm_eval.api.model.LM` of a base, perhaps with an adapter, for `lm_eval.simple_evaluate(model=…)`.

    It tokenizes and windows texts as the harness's own `hf` backend does, so that both give the same numbers: a context
    and its continuation are encoded together, a BOS is added where the tokenizer's files ask for one and the text has
    none, a context that is empty (or white space) is the BOS or else the EOS, and what is too long loses its beginning.

    Args:
      kept: where finished requests are kept, by their tokens; what it has is not computed again.
      seed: of tasks that sample.

    Raises:
      InputError: lm-eval is not installed, or the base has no tokenizer or none that names a BOS or an EOS.
    """
    return model_class()(subject, kept, console, seed)


def import_lm_eval() -> Any:
    """The package. Raises InputError where it is not installed."""
    # Its bars would be torn by ours; its bootstraps would fork a process that has threads.
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("DISABLE_MULTIPROC", "1")
    try:
        import lm_eval
    except ImportError:
        raise InputError("the evaluation 'harness' needs the package lm-eval: pip install lm-eval") from None
    return lm_eval


@functools.cache
def model_class() -> Any:
    """The class itself, which is made late because its parent is an optional package's."""
    import_lm_eval()
    from lm_eval.api.model import TemplateLM
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    class AlignerLM(TemplateLM):
        def __init__(self, subject: Subject, kept: Kept, console: Console, seed: int) -> None:
            super().__init__()
            self._subject, self._kept, self._console, self._seed = subject, kept, console, seed
            tokenizer = subject.tokenizer
            first = tokenizer.bos_id if tokenizer.bos_id is not None else tokenizer.eos_id
            if first is None:
                raise InputError("the base's tokenizer names neither a BOS nor an EOS token, of which one is needed")
            self._prefix_id = first
            self._bos = tokenizer.backend.token(first)

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
            text = self._subject.tokenizer.render_chat(chat_history, add_generation_prompt=add_generation_prompt)
            if add_generation_prompt:
                return text
            # The last message is not over: what the template writes after it is not there yet.
            content = chat_history[-1]["content"].strip()
            return text[: text.rindex(content) + len(content)]

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            tokenizer = self._subject.tokenizer
            adds = tokenizer.add_bos and not string.startswith(self._bos)
            return tokenizer.encode(string, bos=adds if add_special_tokens is None else add_special_tokens)

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            for context, continuation in (request.args for request in requests):
                if not continuation:
                    raise InputError(f"the continuation of {_short(context)} is empty, and so has no likelihood")
            return super().loglikelihood(requests, disable_tqdm=True)

        def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
            continuations = []
            for (context, continuation), context_ids, ids in requests:
                if not 0 < len(ids) <= self.max_length:
                    raise InputError(
                        f"the continuation {_short(continuation)} of {_short(context)} has {len(ids)} tokens, but "
                        f"should have 1 to {self.max_length}, the model's context"
                    )
                # Of a context that is white space nothing is left: it is encoded with the continuation.
                whole = [*(context_ids or [self._prefix_id]), *ids]
                continuations.append(Continuation(tuple(whole[-(self.max_length + 1) :]), len(ids)))
            scores = score(self._subject, continuations, self._kept, self._console)
            return [(each.log_likelihood, each.is_greedy) for each in scores]

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
            windows: list[Continuation] = []
            counts: list[int] = []
            for (text,) in (request.args for request in requests):
                parts = get_rolling_token_windows(
                    token_list=self.tok_encode(text), prefix_token=self.prefix_token_id, max_seq_len=self.max_length,
                    context_len=1,
                )  # fmt: skip
                pairs = [make_disjoint_window(pair) for pair in parts]
                windows += [Continuation((*context, *ids), len(ids)) for context, ids in pairs]
                counts.append(len(pairs))
            scores = iter(score(self._subject, windows, self._kept, self._console))
            return [sum(next(scores).log_likelihood for _ in range(count)) for count in counts]

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            seen: collections.Counter[Prompt] = collections.Counter()
            prompts = []
            for context, wanted in (request.args for request in requests):
                options = normalize_gen_kwargs(wanted, DEFAULT_NEW_TOKENS)
                prompt = self._prompt(context, options)
                # A task that asks the same several times wants several samples.
                prompts.append(prompt._replace(number=seen[prompt]))
                seen[prompt] += prompt.sampling.temperature > 0
            return generate(self._subject, prompts, self._kept, self._console, seed=self._seed)

        def _prompt(self, context: str, options: Mapping[str, Any]) -> Prompt:
            unknown = sorted(options.keys() - _GENERATION)
            if unknown:
                raise InputError(f"a task generates with {unknown[0]!r}, which this model does not have")
            new = options["max_gen_toks"]
            if not 0 < new < self.max_length:
                raise InputError(f"a task generates {new} tokens, but the model's context holds {self.max_length}")
            # As transformers' generate reads them: greedy, unless the task samples or gives a temperature.
            sampled = options.get("do_sample", options.get("temperature", 0.0) > 0)
            sampling = Sampling()
            if sampled:
                top_k = DEFAULT_TOP_K if options.get("top_k") is None else options["top_k"]
                sampling = Sampling(options.get("temperature", 1.0), top_k, options.get("top_p") or 1.0)
            until = options.get("until") or []
            stops = tuple(stop for stop in ([until] if isinstance(until, str) else until) if stop)
            ids = self.tok_encode(context)[-(self.max_length - new) :]
            return Prompt(tuple(ids), new, sampling, stops)

    return AlignerLM


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:18]}…{text[-18:]}")

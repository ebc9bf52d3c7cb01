"""Model of a chat in this process: a base and adapters, on an engine."""

import dataclasses
import functools
import re
from collections.abc import Callable, Generator, Iterator, Sequence

from aligner_jax.chatting.interrupts import held_interrupts
from aligner_jax.chatting.mix import Mix
from aligner_jax.chatting.model import Piece, Question
from aligner_jax.data.conversation import choose_format, prompt_ids
from aligner_jax.data.tokenizer import Tokenizer
from aligner_jax.decoding.choose import Sampling
from aligner_jax.decoding.engine import Engine
from aligner_jax.decoding.engine_options import EngineOptions
from aligner_jax.decoding.lengths import padded_slots
from aligner_jax.decoding.request import GREEDY, NewToken, Request, check_seed
from aligner_jax.errors import InputError
from aligner_jax.evals.subject import subject_name
from aligner_jax.files.content import exists
from aligner_jax.peft.artifact import Artifact, RecordedBase, read_artifact
from aligner_jax.peft.combine import combine
from aligner_jax.peft.row_adapters import Capacity, capacity_of
from aligner_jax.peft.stored import StoredAdapter
from aligner_jax.runtime.fields import did_you_mean
from aligner_jax.weights.base import Base
from aligner_jax.weights.hub import is_hub_name

_ROWS = 2
"""A comparison has two answers."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalOptions:
    """Options of a chat in this process.

    Attributes:
      template: template of the prompts; "auto" is the one that the adapters record.
      context: tokens of the conversation with the answer at most.
      max_new_tokens: tokens of an answer at most.
      sampling: sampling options.
      seed: seed of sampling.
    """

    template: str
    context: int
    max_new_tokens: int
    sampling: Sampling = GREEDY
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class _Known:
    """An adapter that was read."""

    path: str
    artifact: Artifact
    stored: StoredAdapter


class LocalModel:
    """A base and adapters, see `ChatModel`.

    The rows of one engine have adapters of their own. Adapters that rows cannot have, such as full fine-tuning, get an
    engine that shares them.
    """

    def __init__(self, base: Base, options: LocalOptions) -> None:
        """Makes a model without adapters.

        Raises:
          InputError: the base has no tokenizer, or an option is out of range.
        """
        if base.tokenizer is None:
            raise InputError("the base has no tokenizer (no tokenizer.json or tokenizer.model beside its weights)")
        most = base.config.context_length
        if not options.max_new_tokens < options.context <= most:
            raise InputError(
                f"--context is {options.context} and --max_new_tokens {options.max_new_tokens}, but the first should "
                f"be above the second and at most the base's {most}"
            )
        check_seed(options.seed)
        self._base, self._options = base, options
        self._known: dict[str, _Known] = {}
        self._reads = self._questions = self._left_out = 0
        self._rows: Engine | None = None
        self._shared: tuple[Mix, Engine] | None = None

    @property
    def _tokenizer(self) -> Tokenizer:
        assert self._base.tokenizer is not None
        return self._base.tokenizer

    @functools.cached_property
    def _recorded_base(self) -> RecordedBase:
        # The fingerprint reads all weights.
        return RecordedBase(self._base.config, self._base.fingerprint)

    def names(self) -> list[str]:
        """Returns the names of the adapters."""
        return list(self._known)

    def find(self, text: str) -> str:
        """Returns the name of an adapter, which is read if `text` is its file. Raises InputError if there is none."""
        if text in self._known:
            return text
        if not exists(text) and not is_hub_name(text):
            hint = did_you_mean(text, self.names()) if self._known else "give its file"
            raise InputError(f"there is no adapter {text!r}; {hint}")
        # Spaces and @ separate the parts of a sum.
        name = re.sub(r"[\s@+]", "_", subject_name(text))
        if name in self._known and self._known[name].path != text:
            raise InputError(f"{text} and {self._known[name].path} would both have the name {name!r}; rename one")
        artifact = read_artifact(text, self._recorded_base)
        # A file that is read again may hold other numbers, and a shared engine the old ones.
        self._reads += 1
        self._shared = None
        self._known[name] = _Known(text, artifact, StoredAdapter.of(artifact.adapter, (text, self._reads)))
        return name

    def check(self, question: Question, mix: Mix) -> None:
        """Refuses a question that cannot be asked. Raises InputError."""
        self._prompt(question, mix)

    def answers(
        self, question: Question, mixes: Sequence[Mix], say: Callable[[str], None]
    ) -> Generator[Piece, None, None]:
        """Yields the answers in pieces, see `ChatModel.answers`."""
        ids, left_out = self._prompt(question, mixes[-1])
        if left_out and left_out != self._left_out:
            say(
                f"the conversation no longer fits {self._options.context} tokens: its {left_out} oldest messages are "
                "left out"
            )
        self._left_out = left_out
        self._questions += 1
        request = Request(
            ids, self._options.max_new_tokens, self._options.sampling, seed=self._options.seed, draw=self._questions
        )
        with held_interrupts() as is_interrupted:
            running: dict[tuple[Engine, int], int] = {}
            for index, (engine, adapters) in enumerate(self._engines(mixes)):
                number = engine.add(dataclasses.replace(request, adapters=adapters))
                running[engine, number] = index
            yield from self._follow(running, is_interrupted, say)

    def _prompt(self, question: Question, mix: Mix) -> tuple[list[int], int]:
        """Returns the token ids of a prompt, and the number of messages that were left out."""
        tokenizer, messages = self._tokenizer, question.messages
        recorded = {f"the adapter {name}": self._known[name].artifact for name, _ in mix.terms}
        chosen = choose_format(self._options.template, question.system, recorded, tokenizer)
        most = self._options.context - self._options.max_new_tokens
        left_out = 0
        while True:
            ids = prompt_ids(messages[left_out:], chosen, tokenizer)
            if len(ids) <= most:
                return ids, left_out
            if left_out + 1 >= len(messages):
                raise InputError(
                    f"the question has {len(ids)} tokens, but {most} fit beside {self._options.max_new_tokens} new "
                    f"ones in {self._options.context}"
                )
            left_out += 2

    def _engines(self, mixes: Sequence[Mix]) -> list[tuple[Engine, tuple[tuple[StoredAdapter, float], ...]]]:
        """Returns an engine and the adapters of a row for every sum."""
        needed = [self._capacity(mix) for mix in mixes]
        rows = [capacity for capacity in needed if capacity is not None]
        engine = self._engine_of_rows(rows) if rows else None
        found = []
        for mix, capacity in zip(mixes, needed, strict=True):
            if engine is not None and capacity is not None:
                found.append((engine, tuple((self._known[name].stored, weight) for name, weight in mix.weights)))
            else:
                found.append((self._engine_that_shares(mix), ()))
        return found

    def _capacity(self, mix: Mix) -> Capacity | None:
        """Returns the capacity of a row for a sum; None if rows cannot have these adapters."""
        total = Capacity()
        for name, _ in mix.terms:
            stored = self._known[name].stored
            try:
                one = capacity_of(stored.method, stored.options, self._base.params, self._base.config)
            except InputError:
                return None
            joined = total.joined(one)
            total = dataclasses.replace(joined, tokens=total.tokens + one.tokens, rank=total.rank + one.rank)
        return total

    def _engine_of_rows(self, needed: Sequence[Capacity]) -> Engine:
        capacity = functools.reduce(Capacity.joined, needed)
        if self._rows is not None and self._rows.options.capacity is not None:
            if self._rows.options.capacity.holds(capacity):
                return self._rows
            capacity = capacity.joined(self._rows.options.capacity)
        # Its memory is free before that of the next one is taken.
        self._rows = None
        self._rows = self._engine(capacity)
        return self._rows

    def _engine_that_shares(self, mix: Mix) -> Engine:
        if self._shared is None or self._shared[0] != mix:
            self._shared = None
            parts = [(self._known[name].artifact.adapter, weight) for name, weight in mix.weights]
            engine = self._engine(None, adapter=combine(parts, self._base))
            self._shared = mix, engine
        return self._shared[1]

    def _engine(self, capacity: Capacity | None, **shared) -> Engine:
        options = EngineOptions(
            rows=_ROWS, slots=padded_slots(self._options.context), tokens_per_call=1, capacity=capacity,
            has_penalty=self._options.sampling.repetition_penalty != 1,
        )  # fmt: skip
        base = self._base
        return Engine(base.params, base.config, options, stop_ids=self._tokenizer.stop_ids, **shared)

    def _follow(
        self, running: dict[tuple[Engine, int], int], is_interrupted: Callable[[], bool], say: Callable[[str], None]
    ) -> Iterator[Piece]:
        """Yields the answers of requests, whose indices are given, until all have ended."""
        decoders = {index: self._tokenizer.stream_decoder() for index in running.values()}
        try:
            while running:
                for engine in {engine: None for engine, _ in running}:
                    for new in self._turn(engine):
                        if (engine, new.request) not in running:
                            continue
                        index = running[engine, new.request]
                        if new.end is not None:
                            del running[engine, new.request]
                        if new.end != "stop":
                            yield Piece(index, decoders[index](new.token))
                        if new.end == "length":
                            say(f"the answer was cut off after {self._options.max_new_tokens} tokens")
                if is_interrupted():
                    raise KeyboardInterrupt
        finally:
            for engine, number in running:
                engine.cancel(number)

    def _turn(self, engine: Engine) -> list[NewToken]:
        try:
            return engine.turn()
        except BaseException:
            # Its arrays may be lost.
            self._rows = self._shared = None
            raise

"""Continuous batching: rows are refilled as requests finish, and every request has its own adapters and options.

The loop is `admit → decode`, without threads: every turn starts the programs of new prompts and of the next tokens, and
reads tokens that earlier programs made. All shapes are fixed when the engine is made, but for the padded lengths of
prompts, so that nothing compiles after a warm-up. A request's tokens depend on the request alone, in float32 to the
bit, since the shape of its programs depends on the length of its own prompt.
"""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from aligner_jax.decoding import programs
from aligner_jax.decoding.arrivals import Arrivals
from aligner_jax.decoding.engine_options import EngineOptions, tokens_per_program
from aligner_jax.decoding.held import HeldAdapters
from aligner_jax.decoding.lengths import padded_length, prompts_at_once
from aligner_jax.decoding.programs import Tokens
from aligner_jax.decoding.request import Alternative, NewToken, Request, check_lengths, check_prompt, check_seed
from aligner_jax.decoding.state import State
from aligner_jax.errors import InputError
from aligner_jax.model.llama import LlamaConfig, Params
from aligner_jax.model.logical import num_parts
from aligner_jax.peft import Adapter
from aligner_jax.peft.adapter import Options
from aligner_jax.peft.row_sums import Term

TOKENS_PER_TURN = 512
"""Tokens of prompts that are prefilled per turn at most, so that running rows do not wait longer."""


class UnreadableAdapter(InputError):
    """The numbers of an adapter cannot be read when its request gets a row.

    Attributes:
      request: number of the request, which has ended.
    """

    def __init__(self, message: str, request: int) -> None:
        super().__init__(message)
        self.request = request


@dataclasses.dataclass
class _Running:
    """A request that has a row.

    Attributes:
      number: number of the request.
      row: its row.
      made: tokens that have been read.
      started: tokens that programs make which have been started.
    """

    number: int
    request: Request
    row: int
    made: int = 0
    started: int = 1
    is_over: bool = False


@dataclasses.dataclass
class _Parts:
    """A long prompt of which some parts are prefilled."""

    running: _Running
    state: State
    prefilled: int


@dataclasses.dataclass
class _Flight:
    """Tokens that a started program makes, and the requests of their rows by index in the tokens."""

    tokens: Tokens
    owners: dict[int, _Running]


class Engine:
    """Continues the prompts of many requests at once.

    Attributes:
      options: sizes of the engine.
      held: adapters on the device; None if requests have none of their own.
    """

    def __init__(
        self,
        params: Params,
        config: LlamaConfig,
        options: EngineOptions,
        *,
        adapter: Adapter | Sequence[Adapter] | None = None,
        stop_ids: frozenset[int] = frozenset(),
    ) -> None:
        """Makes an engine whose rows are free.

        Args:
          params: parameters of the base.
          config: configuration of the base.
          options: sizes of the engine.
          adapter: an adapter of any method that all requests share, or several that are applied together.
          stop_ids: token ids that end a row.
        """
        shared = tuple(adapter) if adapter is not None and not isinstance(adapter, Adapter) else adapter
        self.options, self._params, self._config = options, params, config
        self._stops = np.asarray(sorted(stop_ids) or [-1], np.int32)
        self._shared = programs.bind_shared(params, shared, config=config)
        self._state = programs.make_state(
            config=config, batch_size=options.rows, slots=options.slots, dtype=params.embed_vd.dtype,
            first_position=self._shared.first_position, alternatives=options.alternatives,
            has_penalty=options.has_penalty, capacity=options.capacity,
        )  # fmt: skip
        (device, *_) = self._state.token_b.devices()
        self._platform = device.platform
        self.held = None
        if options.capacity is not None:
            places = options.all_places(num_parts("batch"), self._platform)
            self.held = HeldAdapters(params, config, options.capacity, places)
        self._waiting: collections.OrderedDict[int, Request] = collections.OrderedDict()
        self._running: dict[int, _Running] = {}
        self._free = list(range(options.rows))[::-1]
        self._parts: _Parts | None = None
        self._flights: collections.deque[_Flight] = collections.deque()
        self._ended: list[int] = []
        self._next = 0
        # A CPU computes while the host waits either way, so that a call in advance would only be wasted at the end.
        self._ahead = 0 if self._platform == "cpu" else 1

    @property
    def num_waiting(self) -> int:
        """Number of requests that have no row."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Number of requests that have a row."""
        return len(self._running)

    @property
    def is_idle(self) -> bool:
        """Returns True if there is nothing to do."""
        return not (self._waiting or self._running or self._flights)

    def check(self, request: Request) -> None:
        """Refuses a request that this engine cannot serve. Raises InputError."""
        check_prompt(request.prompt_ids, self._config, "the prompt")
        check_lengths(len(request.prompt_ids), request.max_new_tokens, self._config)
        check_seed(request.seed)
        if request.num_tokens > self.options.slots:
            raise InputError(
                f"a prompt of {len(request.prompt_ids)} tokens and {request.max_new_tokens} new ones do not fit the "
                f"{self.options.slots} tokens that the engine has for a request"
            )
        if request.logprobs and self.options.alternatives is None:
            raise InputError("the engine was made without log-probabilities")
        if request.sampling.repetition_penalty != 1 and not self.options.has_penalty:
            raise InputError("the engine was made without repetition penalties")
        if request.adapters and self.held is None:
            raise InputError("the engine was made without adapters for requests")
        if self.held is not None:
            self.held.check([adapter for adapter, _ in request.adapters])

    def add(self, request: Request) -> int:
        """Lets a request wait for a row; returns its number.

        Raises:
          InputError: the engine cannot serve it, see `check`.
        """
        self.check(request)
        number, self._next = self._next, self._next + 1
        self._waiting[number] = request
        return number

    def cancel(self, number: int) -> None:
        """Ends a request; no more tokens of it are returned. Does nothing if the request has ended."""
        self._waiting.pop(number, None)
        if number in self._running:
            self._end(self._running[number])

    def turn(self) -> list[NewToken]:
        """Admits waiting requests, decodes the next tokens, and returns tokens that are ready, in order.

        On CPUs a turn does one of the two: it admits the prompts of one program, or it decodes.

        Raises:
          UnreadableAdapter: the numbers of a request's adapter cannot be read. The request no longer waits, and the
            next turn goes on with the others.
        """
        self._admit()
        # Without calls in advance, first tokens would wait for the next ones, which another turn starts.
        started = (self._ahead > 0 or not self._flights) and self._decode()
        found: list[NewToken] = []
        while len(self._flights) > (self._ahead if started else 0):
            found += self._read(self._flights.popleft())
        return found

    def run(self, requests: Sequence[Request]) -> Iterator[NewToken]:
        """Yields the tokens of requests, which are numbered from 0, until all have ended."""
        numbers = {self.add(request): index for index, request in enumerate(requests)}
        while not self.is_idle:
            for new in self.turn():
                if new.request in numbers:
                    yield new._replace(request=numbers[new.request])

    def warm_up(
        self, kinds: Sequence[tuple[str, Options]] = (), should_stop: Callable[[], bool] = lambda: False
    ) -> None:
        """Compiles every program that requests may need.

        Args:
          kinds: methods and options of the adapters that requests may have.
          should_stop: called before each program; the warm-up ends early if it returns True.
        """
        for kind in kinds:
            assert self.held is not None
            if should_stop():
                return
            self.held.warm_up(*kind)
        longest, part = min(self.options.slots, self._config.context_length) - 1, self.options.longest_part
        # The longest prompt of every padded length, whole or as the last part of a longer one.
        whole = {min(padded_length(length), part, longest) for length in range(1, min(longest, part) + 1)}
        last = {min(padded_length(length), part, longest - part) for length in range(1, min(longest - part, part) + 1)}
        lengths = [
            *sorted(whole),
            *(part + length for length in sorted(last)),
            *([2 * part + 1] * (longest > 2 * part)),
        ]
        sizes = [(length, 1) for length in lengths]
        sizes += [(1, 2), (1, min(self.options.tokens_per_call + 1, longest))]
        for length, new in sizes:
            if should_stop():
                return
            list(self.run([Request([0] * length, new)]))

    def _admit(self) -> None:
        # Without calls in advance, a turn admits the prompts of one program, whose first tokens it returns at once.
        budget = TOKENS_PER_TURN if self._ahead else 1
        if self._parts is not None:
            budget -= self._add_part(self._parts)
        while self._waiting and self._free and budget > 0:
            number = next(iter(self._waiting))
            request = self._waiting[number]
            width = self.options.width(len(request.prompt_ids))
            if width is None:
                # The prompts behind it wait too: they are served in their order.
                if self._parts is not None:
                    return
                budget -= self._begin_parts(number)
                continue
            group = self._group(width)
            alike = (
                number for number, each in self._waiting.items() if self.options.width(len(each.prompt_ids)) == width
            )
            running, arrivals = self._take(list(itertools.islice(alike, min(group, len(self._free)))), width, group)
            self._state, tokens = programs.admit(
                self._params, self._shared, self.held and self.held.rows, self._state, arrivals, self._stops,
                config=self._config,
            )  # fmt: skip
            self._flights.append(_Flight(tokens, dict(enumerate(running))))
            budget -= group * width

    def _group(self, width: int) -> int:
        return prompts_at_once(width, self.options.rows, num_parts("batch"), self._platform)

    def _take(self, numbers: Sequence[int], width: int, group: int) -> tuple[list[_Running], Arrivals]:
        """Gives rows to waiting requests; returns them, and as arrays the first `width` tokens of their prompts."""
        # Adapters come first: those that cannot be read must not cost a row.
        terms = None if self.held is None else [self._terms(number) for number in numbers]
        running = []
        for number in numbers:
            running.append(_Running(number, self._waiting.pop(number), self._free.pop()))
            self._running[number] = running[-1]
            # The row's next request must not be ended in the place of the last one.
            if running[-1].row in self._ended:
                self._ended.remove(running[-1].row)
        requests = [each.request for each in running]
        sums = None if self.held is None or terms is None else self.held.sums(terms, group)
        return running, Arrivals.of(
            requests, [each.row for each in running], [request.prompt_ids[:width] for request in requests],
            width=width, group=group, sums=sums,
        )  # fmt: skip

    def _terms(self, number: int) -> list[Term]:
        assert self.held is not None
        try:
            return self.held.terms(self._waiting[number].adapters)
        except InputError as error:
            del self._waiting[number]
            raise UnreadableAdapter(str(error), number) from error

    def _begin_parts(self, number: int) -> int:
        part = self.options.longest_part
        group = self._group(part)
        (running,), arrivals = self._take([number], part, group)
        # The padding of the last part needs slots too.
        state = programs.begin_parts(
            self._params, self._shared, self.held and self.held.rows, arrivals, config=self._config,
            slots=self.options.slots + part, has_penalty=self.options.has_penalty,
        )  # fmt: skip
        self._parts = _Parts(running, state, part)
        return group * part

    def _add_part(self, parts: _Parts) -> int:
        running, longest = parts.running, self.options.longest_part
        if running.is_over:
            self._parts = None
            return 0
        ids = running.request.prompt_ids[parts.prefilled :]
        is_last = len(ids) <= longest
        width = (is_last and self.options.width(len(ids))) or longest
        # The state of the first part has as many rows.
        group = self._group(longest)
        # The adapters are in the state already.
        arrivals = Arrivals.of([running.request], [running.row], [ids[:width]], width=width, group=group)
        if is_last:
            self._parts = None
            self._state, tokens = programs.admit_parts(
                self._params, self._shared, self._state, parts.state, arrivals, self._stops, config=self._config
            )
            self._flights.append(_Flight(tokens, {0: running}))
        else:
            parts.state = programs.add_part(self._params, self._shared, parts.state, arrivals, config=self._config)
            parts.prefilled += width
        return group * width

    def _decode(self) -> bool:
        """Starts the program of the next tokens, if a row may have one; returns True if it did."""
        unfinished = [
            each for each in self._running.values()
            if each.started < each.request.max_new_tokens and not (self._parts and self._parts.running is each)
        ]  # fmt: skip
        if not unfinished:
            return False
        most = max(each.request.max_new_tokens - each.started for each in unfinished)
        several = not self._waiting and self._parts is None and most >= self.options.tokens_per_call
        count = self.options.tokens_per_call if several else 1
        ended = np.full(self.options.rows, self.options.rows, np.int32)
        ended[: len(self._ended)], self._ended = self._ended, []
        columns = []
        each_call = tokens_per_program(self._platform, count)
        for _ in range(count // each_call):
            self._state, tokens = programs.decode(
                self._params, self._shared, self._state, ended, self._stops, config=self._config, count=each_call
            )
            columns.append(tokens)
        tokens = columns[0] if len(columns) == 1 else jax.tree.map(lambda *x: jnp.concatenate(x, axis=-1), *columns)
        for each in unfinished:
            each.started += count
        self._flights.append(_Flight(tokens, {each.row: each for each in unfinished}))
        return True

    def _read(self, flight: _Flight) -> Iterator[NewToken]:
        """Yields the tokens of a program, after it has ended."""
        tokens = jax.device_get(flight.tokens)
        for column in range(tokens.token_bt.shape[1]):
            for row, running in flight.owners.items():
                if not running.is_over:
                    yield self._new_token(running, tokens, row, column)

    def _new_token(self, running: _Running, tokens: Tokens, row: int, column: int) -> NewToken:
        token = int(tokens.token_bt[row, column])
        running.made += 1
        end = "stop" if token in self._stops else "length" if running.made == running.request.max_new_tokens else None
        logprob, alternatives = None, ()
        if running.request.logprobs and tokens.logprobs is not None:
            logprob = float(tokens.logprobs.token_b[row, column])
            ids, values = (x[row, :, column] for x in (tokens.logprobs.top_ids_bx, tokens.logprobs.top_bx))
            alternatives = tuple(Alternative(int(i), float(x)) for i, x in zip(ids, values, strict=True))
        if end is not None:
            self._end(running)
        return NewToken(running.number, token, logprob, alternatives, end)

    def _end(self, running: _Running) -> None:
        running.is_over = True
        del self._running[running.number]
        self._free.append(running.row)
        self._ended.append(running.row)

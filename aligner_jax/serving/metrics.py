"""Counts and times of a server in Prometheus' format."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from aligner_jax.serving.engine_thread import EngineThread

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TOKENS_A_SECOND = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


class Metrics:
    """Metrics of one server.

    Attributes:
      first_token: seconds from a request's arrival to its first token.
      tokens_per_second: new tokens of a request over the time after its first token.
      prompt_tokens, new_tokens: tokens read and made.
      responses: responses by path and status.
      cancelled: requests whose client went away.
    """

    def __init__(self, engine: EngineThread) -> None:
        self._registry = CollectorRegistry()
        self.first_token = Histogram(
            "aligner_time_to_first_token_seconds", "Time from a request's arrival to its first token.",
            buckets=_SECONDS, registry=self._registry,
        )  # fmt: skip
        self.tokens_per_second = Histogram(
            "aligner_request_tokens_per_second", "New tokens a second of a request, after its first.",
            buckets=_TOKENS_A_SECOND, registry=self._registry,
        )  # fmt: skip
        self.prompt_tokens = Counter("aligner_prompt_tokens", "Tokens of prompts.", registry=self._registry)
        self.new_tokens = Counter("aligner_generated_tokens", "New tokens.", registry=self._registry)
        self.responses = Counter("aligner_responses", "Responses.", ["path", "status"], registry=self._registry)
        self.cancelled = Counter("aligner_cancelled", "Requests whose client went away.", registry=self._registry)
        gauges = {
            "waiting": ("Choices that wait for a row.", lambda: engine.num_waiting),
            "running": ("Rows in use.", lambda: engine.engine.num_running),
            "rows": ("Rows.", lambda: engine.engine.options.rows),
        }
        for name, (about, value) in gauges.items():
            Gauge(f"aligner_{name}", about, registry=self._registry).set_function(value)
        self._registry.register(_Lookups(engine))

    def text(self) -> bytes:
        """Returns all metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class _Lookups(Collector):
    """Lookups of adapters on the device."""

    def __init__(self, engine: EngineThread) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        held = self._engine.engine.held
        hits, misses = (0, 0) if held is None else (held.hits, held.misses)
        yield CounterMetricFamily("aligner_bank_hits", "Adapters that were on the device.", value=hits)
        yield CounterMetricFamily("aligner_bank_misses", "Adapters that had to be bound.", value=misses)

"""Measures the admission of adapters from a bank beside the prefill of their prompts; part of scripts.bench.bank."""

import statistics
import time
from pathlib import Path
from typing import Any

import jax

from aligner_jax.decoding.engine import Engine
from aligner_jax.decoding.engine_options import EngineOptions
from aligner_jax.decoding.held import HeldAdapters
from aligner_jax.decoding.request import Request
from aligner_jax.model.config import LlamaConfig
from aligner_jax.model.params import Params, init_params
from aligner_jax.peft.bank import Bank
from aligner_jax.peft.row_adapters import Capacity
from aligner_jax.peft.stored import StoredAdapter
from scripts.bench import report
from scripts.bench.bank_touch import name_of, percentiles

PROMPT_TOKENS = 64
PLACES = 64
ALONE = 500
"""Admissions that are measured without a prefill."""


def measure(folder: Path, config: LlamaConfig, rounds: int) -> dict[str, Any]:
    """Measures admissions alone and beside a prefill. The bank has at least `ALONE` + `rounds` adapters."""
    params = init_params(config)
    compiled: list[str] = []
    with Bank.open(folder) as bank:
        held = HeldAdapters(params, config, Capacity(), PLACES)
        new = [bank.get(name_of(index)) for index in range(ALONE + rounds)]
        _admitted(held, new[-1])
        engine = _engine(params, config, bank)
        jax.monitoring.register_event_duration_secs_listener(
            lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None
        )
        alone = {
            "a new adapter": percentiles([_admitted(held, stored) for stored in new[:ALONE]]),
            "one that is held": percentiles([_admitted(held, new[ALONE - 1]) for _ in range(ALONE)]),
        }
        arms: dict[str, list[float]] = {"base": [], "held": [], "new": []}
        for stored in new[ALONE:]:
            # Alternating, since the load of the machine changes.
            arms["base"].append(_prefilled(engine, ()))
            arms["new"].append(_prefilled(engine, ((stored, 1.0),)))
            arms["held"].append(_prefilled(engine, ((stored, 1.0),)))
    medians = {arm: statistics.median(seconds) for arm, seconds in arms.items()}
    differences = [new - base for new, base in zip(arms["new"], arms["base"], strict=True)]
    return {
        "alone": alone,
        "prefill": {arm: percentiles(seconds) for arm, seconds in arms.items()},
        "added": medians["new"] - medians["base"],
        "median_of_differences": statistics.median(differences),
        "compilations": len(compiled),
        "hits": engine.held and engine.held.hits,
        "misses": engine.held and engine.held.misses,
    }


def as_table(found: dict[str, Any]) -> str:
    """Formats the result of `measure`."""
    rows = [[f"admission of {what}", *_milliseconds(times)] for what, times in found["alone"].items()]
    rows += [
        [f"prefill of {PROMPT_TOKENS} tokens, adapter {arm}", *_milliseconds(times)]
        for arm, times in found["prefill"].items()
    ]
    added = f"a new adapter adds {found['added'] * 1e3:+.2f} ms to the median prefill of the base"
    pairs = f"{found['median_of_differences'] * 1e3:+.2f} ms as median of the differences"
    table = report.table(["", "least ms", "p50 ms", "p99 ms"], rows)
    return f"{table}\n{added} ({pairs}); compilations after the warm-up: {found['compilations']}\n"


def _engine(params: Params, config: LlamaConfig, bank: Bank) -> Engine:
    options = EngineOptions(rows=4, slots=2 * PROMPT_TOKENS, capacity=Capacity(), places=PLACES)
    engine = Engine(params, config, options)
    engine.warm_up(bank.kinds())
    return engine


def _admitted(held: HeldAdapters, stored: StoredAdapter) -> float:
    """Returns the seconds until an adapter is on the device."""
    start = time.perf_counter()
    held.terms([(stored, 1.0)])
    jax.block_until_ready(held.rows)
    return time.perf_counter() - start


def _prefilled(engine: Engine, adapters: tuple[tuple[StoredAdapter, float], ...]) -> float:
    """Returns the seconds until the first token of a request."""
    prompt = [1 + index for index in range(PROMPT_TOKENS)]
    start = time.perf_counter()
    list(engine.run([Request(prompt, 1, adapters=adapters)]))
    return time.perf_counter() - start


def _milliseconds(times: dict[str, float]) -> list[str]:
    return [f"{times[share] * 1e3:.2f}" for share in ("least", "p50", "p99")]

"""Measures decode steps of the engine with and without adapters of the rows' own; run from the repository's root.

    python -m scripts.bench.engine --base=PATH [--rows=8] [--dtype=float32] [--rounds=8]

All rows decode at the same length. The arms take turns. Every ratio is the median of the rounds: tokens per
second with the arm to those of the base alone. LoRA's factors are read per row, so that their cost grows with the rows.
"""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp

import aligner_jax as aj
from aligner_jax.decoding.engine import Engine
from aligner_jax.decoding.engine_options import EngineOptions
from aligner_jax.decoding.request import Request
from aligner_jax.peft import Adapter
from aligner_jax.peft.row_adapters import Capacity, capacity_of
from aligner_jax.peft.stored import StoredAdapter
from aligner_jax.weights.base import Base

PROMPT_TOKENS, TOKENS_PER_CALL = 64, 8


@dataclasses.dataclass(frozen=True)
class Arm:
    """Adapters of the rows.

    Attributes:
      name: name in the output.
      adapters: one adapter per row; empty for the base alone.
      capacity: capacity of the engine's rows; None for an engine without adapters.
    """

    name: str
    adapters: Sequence[Adapter]
    capacity: Capacity | None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="the base")
    parser.add_argument("--rows", type=int, default=8, help="rows of the engine (default %(default)s)")
    parser.add_argument("--dtype", default="float32", help="dtype of the base (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=8, help="turns of every arm (default %(default)s)")
    args = parser.parse_args()
    base = aj.load_base(args.base, args.dtype)
    arms = make_arms(base, args.rows)
    engines = {arm.name: start(base, arm, args.rows, args.rounds) for arm in arms}
    seconds: dict[str, list[float]] = {arm.name: [] for arm in arms}
    for _ in range(args.rounds):
        for name, engine in engines.items():
            began = time.perf_counter()
            made = len(engine.turn())
            assert made == args.rows * TOKENS_PER_CALL
            seconds[name].append(time.perf_counter() - began)
    print(f"{args.rows} rows of {PROMPT_TOKENS} tokens and more, {args.dtype}, {args.rounds} rounds")
    reference = seconds[arms[0].name]
    for name, taken in seconds.items():
        rate = args.rows * TOKENS_PER_CALL / statistics.median(taken)
        ratio = statistics.median(one / other for one, other in zip(reference, taken, strict=True))
        print(f"{name:34} {rate:8.1f} tokens/s  {ratio:.3f} of the base")
    same, different = seconds[arms[1].name], seconds[arms[2].name]
    ratio = statistics.median(one / other for one, other in zip(same, different, strict=True))
    print(f"every row another, to all the same: {ratio:.3f}")


def make_arms(base: Base, rows: int) -> list[Arm]:
    """Returns the base alone, one adapter in all rows, another in every row, longer prefixes, and LoRA."""

    def adapters(method: str, count: int, **options) -> list[Adapter]:
        made = []
        for key in range(count):
            adapter = aj.init_adapter(method, base.config, key=key, **options)
            # Gates and factors begin at 0.
            noise = {
                name: x + 0.01 * jax.random.normal(jax.random.key(key), x.shape)
                for name, x in adapter.trainable.items()
            }
            made.append(adapter.replace(trainable=noise))
        return made

    def room(adapter: Adapter) -> Capacity:
        return capacity_of(adapter.method, adapter.options, base.params, base.config)

    one, ten, lora = adapters("aligner", rows), adapters("aligner", rows, num_tokens=10), adapters("lora", rows)
    return [
        Arm("base", [], None),
        Arm("one token, the same in all rows", one[:1] * rows, Capacity()),
        Arm("one token, another in every row", one, Capacity()),
        Arm("ten tokens, another in every row", ten, room(ten[0])),
        Arm("LoRA r 8, another in every row", lora, room(lora[0])),
    ]


def start(base: Base, arm: Arm, rows: int, rounds: int) -> Engine:
    """Returns an engine whose rows all decode."""
    new = 1 + TOKENS_PER_CALL * (rounds + 3)
    slots = PROMPT_TOKENS + new
    options = EngineOptions(
        rows=rows, slots=slots, tokens_per_call=TOKENS_PER_CALL, capacity=arm.capacity, places=max(rows, 4)
    )
    engine = Engine(base.params, base.config, options)
    for row in range(rows):
        own = ((StoredAdapter.of(arm.adapters[row], id(arm.adapters[row])), 1.0),) if arm.adapters else ()
        ids = jax.random.randint(jax.random.key(row), (PROMPT_TOKENS,), 0, base.config.vocab_size)
        engine.add(Request(jnp.asarray(ids).tolist(), new, adapters=own))
    while engine.num_waiting:
        engine.turn()
    engine.turn()
    return engine


if __name__ == "__main__":
    main()

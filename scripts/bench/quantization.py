"""Measures quantized bases: bytes of weights, held-out loss and tokens a second of a training step.

    python -m scripts.bench.quantization --data=alpaca_data.json [--base=PATH] [--dtype=bfloat16] [--examples=64]

The loss is that of the base alone, on the answers of a file's last examples in the Alpaca template. The step trains an
Aligner of ten tokens on four packed rows of 512 with full rematerialization; its fastest turn counts. All quantizations
take turns in one process, so memory in use is not measured. A base file that itself has four bits in blocks of 32 (such
as the quickstart's) flatters int4 in groups of 32, which coincide with its blocks; --group_size=64 does not.
"""

import argparse
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

import aligner_jax as aj
from aligner_jax.data import pipeline
from aligner_jax.data.sources import load_examples
from aligner_jax.evals.heldout import heldout_loss
from aligner_jax.objectives.step import init_state, make_step
from aligner_jax.runtime import optim, platform
from aligner_jax.runtime.config import OptimConfig
from aligner_jax.studies.flag_values import MODEL

KINDS = ("none", "int8", "int4")
ROWS = 4


class Row(NamedTuple):
    """Figures of one quantization."""

    held: str
    nbytes: int
    loss: float
    tokens_per_second: float


def main() -> None:
    args = arguments()
    platform.prepare()
    dtype = platform.compute_dtype(args.dtype)
    rows = []
    for kind in KINDS:
        base = aj.load_base(args.base, dtype, quantization=kind, group_size=args.group_size)
        batches = pipeline.eval_batches(
            documents(base, args.data, args.length)[-args.examples :], batch_size=ROWS, sequence_length=args.length
        )
        loss = heldout_loss(base.params, None, batches, config=base.config)
        rows.append(Row(str(base.quantization or dtype), nbytes(base), loss, speed(base, batches, args.turns)))
        print("\n".join(table(rows)), flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default=MODEL, help="anything that aj.load_base reads (default %(default)s)")
    parser.add_argument("--data", required=True, help="examples in a format that the package reads")
    parser.add_argument("--dtype", default="bfloat16", choices=("auto", "float32", "bfloat16"))
    parser.add_argument("--group_size", type=int, default=32, help="of int4 (default %(default)s)")
    parser.add_argument("--examples", type=int, default=64, help="held-out ones (default %(default)s)")
    parser.add_argument("--length", type=int, default=512, help="tokens a row (default %(default)s)")
    parser.add_argument("--turns", type=int, default=3, help="timed steps (default %(default)s)")
    return parser.parse_args()


def documents(base, data: str, length: int) -> list[Any]:
    """Returns the examples that fit in a row, as tokens."""
    return pipeline.tokenize_examples(
        load_examples(data), base.tokenizer, "alpaca", sequence_length=length, overlong="drop"
    )[0]


def nbytes(base) -> int:
    """Returns the bytes of the parameters on a TPU, which packs two int4 values in a byte."""
    bits = {"int4": 4}
    return sum(x.size * bits.get(x.dtype.name, 8 * x.dtype.itemsize) // 8 for x in jax.tree.leaves(base.params))


def speed(base, batches: list[pipeline.Batch], turns: int) -> float:
    """Returns the tokens a second, without padding, of the fastest training step."""
    config = OptimConfig()
    adapter = aj.init_adapter("aligner", base.config, num_tokens=10)
    optimizer = optim.make_optimizer(config, steps=1000)
    step = jax.jit(make_step(adapter, optimizer, config=base.config, remat="full"), donate_argnums=0)
    state, fastest = init_state(adapter, optimizer), 0.0
    for turn, batch in zip(range(turns + 1), _again(batches), strict=False):
        began = time.perf_counter()
        state, _ = jax.block_until_ready(step(state, base.params, batch))
        tokens = int(np.count_nonzero(batch.segment_ids_bt))
        if turn:  # The first turn compiles.
            fastest = max(fastest, tokens / (time.perf_counter() - began))
    return fastest


def _again(batches: list[pipeline.Batch]) -> Iterator[pipeline.Batch]:
    while True:
        yield from batches


def table(rows: list[Row]) -> list[str]:
    """Formats the rows, with losses relative to the first row's."""
    lines = [f"{'held as':26}{'bytes':>14}{'held-out loss':>16}{'difference':>12}{'tokens/s':>10}"]
    for row in rows:
        difference = row.loss / rows[0].loss - 1
        lines.append(
            f"{row.held:26}{row.nbytes:>14,}{row.loss:>16.4f}{difference:>12.2%}{row.tokens_per_second:>10,.0f}"
        )
    return lines


if __name__ == "__main__":
    main()

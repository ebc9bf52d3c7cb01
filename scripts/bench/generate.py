"""Compares our greedy decoding with that of transformers: same weights, same prompts, alternating turns.

    PEER_PYTHON=ENV/bin/python python -m scripts.bench.generate [--batch=1,8] [--dtype=bfloat16,float32] [--json=FILE]

ENV is an environment of Python 3.11 with `pip install torch==2.13.0 peft transformers`.

Ours is the sampler behind `aj.sample`; the peer's is `generate(do_sample=False, use_cache=True)`. Each side has its own
process, which uses all cores, and only one works at a time. All prompts have the same length and no token ends a text,
so both sides generate equally many tokens. A turn is a prefill and all new tokens; tokens a second are the new tokens
over the time of the whole turn. Compilation is excluded: both sides generate once before the first turn. Turns during
which other processes took more than 5 % of the cores do not count, unless a side has no others. In float32 both must
generate the same tokens, except for rare ties that rounding decides.
"""

import argparse
import itertools
import sys
import tempfile
from pathlib import Path
from typing import Any

from scripts.bench import report, same_model
from scripts.bench.protocol import Worker, peer_python

LEAST_AGREEMENT = 0.95


def main() -> None:
    args = arguments()
    peer_python()
    with tempfile.TemporaryDirectory(prefix="bench_generate_") as scratch:
        model = same_model.prepare(args.base, args.data, args.dtype, Path(scratch), examples=400, peer=True)
        prompts = prompts_of(model["documents"], max(args.batch), args.prompt_tokens)
        about = {side: model[side] for side in ("ours", "peer", "largest_difference")}
        result: dict[str, Any] = {"about": about, "new_tokens": args.new_tokens, "measured": []}
        for dtype in args.dtype:
            result["measured"] += measure(args, model["folders"][dtype], dtype, prompts, Path(scratch))
            report.write_json(args.json, result)
    print(f"\n{args.turns} turns of {args.new_tokens} new tokens after prompts of {args.prompt_tokens}")
    print(as_table(result["measured"]), flush=True)
    report.warn(turns for found in result["measured"] for turns in found["turns"].values())
    for found in result["measured"]:
        if found["dtype"] == "float32" and found["agreement"] < LEAST_AGREEMENT:
            sys.exit(f"error: in float32 only {found['agreement']:.0%} of the tokens are the same; one side is wrong")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    same_model.add_arguments(parser)
    parser.add_argument("--batch", type=sizes, default="1,8", help="prompts at a time (default %(default)s)")
    parser.add_argument("--prompt-tokens", type=int, default=64, help="tokens of a prompt (default %(default)s)")
    parser.add_argument("--new-tokens", type=int, default=64, help="tokens to make (default %(default)s)")
    parser.add_argument("--turns", type=int, default=5, help="turns of each side (default %(default)s)")
    return parser.parse_args()


def sizes(text: str) -> list[int]:
    """Parses positive numbers with commas between them, for argparse."""
    found = [int(part) for part in text.split(",")]
    if min(found) < 1:
        raise ValueError
    return found


def prompts_of(documents: list[dict[str, list[int]]], count: int, length: int) -> list[list[int]]:
    """Returns the first `length` tokens of the first `count` examples that are long enough."""
    long_enough = [document["tokens"][:length] for document in documents if len(document["tokens"]) >= length]
    if len(long_enough) < count:
        sys.exit(f"error: the data has {len(long_enough)} examples of {length} tokens or more, and {count} are needed")
    return long_enough[:count]


def measure(
    args: argparse.Namespace, folder: str, dtype: str, prompts: list[list[int]], scratch: Path
) -> list[dict[str, Any]]:
    """Measures all batch sizes in one dtype."""
    measured = []
    for batch in args.batch:
        with Worker.ours(scratch / "compiled") as ours, Worker.peer() as peer:
            sides = {"ours": ours, "peer": peer}
            request = {"prompts": prompts[:batch], "new_tokens": args.new_tokens}
            tokens, turns = {}, {side: [] for side in sides}
            for side, worker in sides.items():
                worker.ask("load", folder=folder, dtype=dtype)
                tokens[side] = worker.ask("generate", **request)["tokens"]
            for _, (side, worker) in itertools.product(range(args.turns), sides.items()):
                turn = worker.turn("generate", **request)
                turns[side].append({**turn, "tokens": batch * args.new_tokens})
            peaks = {side: worker.ask("peak_memory")["bytes"] for side, worker in sides.items()}
        found = {"dtype": dtype, "batch": batch, "agreement": agreement(tokens["ours"], tokens["peer"])}
        measured.append({**found, "turns": turns, "peak_bytes": peaks, "tokens": tokens})
    return measured


def agreement(ours: list[list[int]], peer: list[list[int]]) -> float:
    """Returns the share of positions that hold the same token. A row that has diverged hardly ever agrees again."""
    if [len(row) for row in ours] != [len(row) for row in peer]:
        sys.exit("error: the two sides made different numbers of tokens")
    pairs = [pair for rows in zip(ours, peer, strict=True) for pair in zip(*rows, strict=True)]
    return sum(a == b for a, b in pairs) / len(pairs)


def as_table(measured: list[dict[str, Any]]) -> str:
    """Formats one line per dtype and batch size."""
    header = [
        "dtype, batch",
        "ours tokens/s (least..most)",
        "transformers",
        "ratio",
        "peak MB",
        "theirs",
        "ratio",
        "same tokens",
        "quiet turns",
    ]
    rows = []
    for found in measured:
        ours, peer = (report.rates(found["turns"][side]) for side in ("ours", "peer"))
        peaks = found["peak_bytes"]
        rows.append(
            [
                f"{found['dtype']}, {found['batch']}",
                str(ours),
                str(peer),
                report.ratio_text(report.ratio(ours.median, [peer.median], max)),
                report.megabytes(peaks["ours"]),
                report.megabytes(peaks["peer"]),
                report.ratio_text(report.ratio(peaks["ours"], [peaks["peer"]], min)),
                f"{found['agreement']:.1%}",
                ", ".join(map(report.quiet_text, found["turns"].values())),
            ]
        )
    return report.table(header, rows)


if __name__ == "__main__":
    main()

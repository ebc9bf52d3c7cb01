"""Compares our training step with Hugging Face PEFT's: same weights, same examples, alternating turns.

    PEER_PYTHON=ENV/bin/python python -m scripts.bench.train --data=alpaca_data.json [--json=FILE]
    python -m scripts.bench.train --arms=aligner_1,aligner_10 --workload=fixed --remat=dots    # ours alone

ENV is an environment of Python 3.11 with `pip install torch==2.13.0 peft transformers`.

Every arm has its own process. Turns alternate (ours, peer's, ours, peer's, …), and each uses all cores. Both sides
train the adapter's parameters alone, with AdamW. Workloads:

  fixed  4 rows of 256 tokens of the examples' text, every position a target.
  mixed  Alpaca examples of all lengths up to 512 tokens, 16 a step, loss on the answers. Ours come packed into rows of
         512 from the package's own pipeline, as many rows a step as hold about 16 examples. The peer pads 16 examples
         to the longest; the arm peft_lora_8_padding_free joins them in one row without padding (TRL's padding-free),
         after a check that the loss stays the same.

Tokens a second count the examples' tokens on both sides, without padding. The peak is that of resident memory since the
start of the process. The first step is the time from the start of the process to the end of its first step: import,
load, compile, run; with an empty and with a filled cache of compiled programs (the peer compiles nothing and has one
time). Turns during which other processes took more than 5 % of the cores do not count, unless an arm has no others.
Checkpoints, logs and other work of a run are excluded on both sides. A ratio is ours over the best of the peer's arms
in that column, so speeds are better above 1, and memory and times below.
"""

import argparse
import itertools
import shutil
import tempfile
from pathlib import Path
from typing import Any

from aligner_jax.studies.flag_values import names
from scripts.bench import report, same_model
from scripts.bench.protocol import Worker, peer_python

OURS = {
    "aligner_1": ("aligner", {"num_tokens": 1}),
    "aligner_10": ("aligner", {"num_tokens": 10}),
    "llama_adapter_10": ("llama_adapter", {"num_tokens": 10}),
    "lora_8": ("lora", {"rank": 8, "alpha": 16, "targets": ["q", "v"], "dropout": 0.0}),
}
"""Method and options of each arm."""
_LORA = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": ["q_proj", "v_proj"]}
PEERS = {
    "peft_adaption_prompt_10": ("adaption_prompt", {"adapter_len": 10}),
    "peft_lora_8": ("lora", _LORA),
    "peft_lora_8_padding_free": ("lora", _LORA),
}
WORKLOADS = ("fixed", "mixed")
ROWS, LENGTH = 4, 256
EXAMPLES_A_STEP, PACKED_LENGTH = 16, 512
FIRST_LOSS_TOLERANCE = 0.02


def main() -> None:
    args = arguments()
    peer = any(arm in PEERS for arm in args.arms)
    if peer:
        peer_python()
    with tempfile.TemporaryDirectory(prefix="bench_train_") as scratch:
        model = same_model.prepare(args.base, args.data, args.dtype, Path(scratch), examples=args.examples, peer=peer)
        args.remat = args.remat or model["ours"]["remat"]
        about = {side: model[side] for side in ("ours", "peer", "largest_difference") if side in model}
        result: dict[str, Any] = {"about": about, "remat": args.remat, "steps": args.steps, "measured": []}
        for workload, dtype in itertools.product(args.workload, args.dtype):
            arms = measure(args, model, workload, dtype, Path(scratch))
            result["measured"].append({"workload": workload, "dtype": dtype, "arms": arms})
            report.write_json(args.json, result)
            print(f"\n{describe(workload)}; {dtype}; {args.turns} turns of {args.steps} steps; remat {args.remat}")
            print(as_table(arms), flush=True)
            report.warn(found["turns"] for found in arms.values())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    same_model.add_arguments(parser)
    known = (*OURS, *PEERS)
    parser.add_argument("--arms", type=names(known), default=",".join(known), help="some of %(default)s")
    parser.add_argument("--workload", type=names(WORKLOADS), default=",".join(WORKLOADS), help="some of %(default)s")
    parser.add_argument("--steps", type=int, default=3, help="steps a turn (default %(default)s)")
    parser.add_argument("--turns", type=int, default=5, help="turns of every arm (default %(default)s)")
    parser.add_argument("--examples", type=int, default=2000, help="examples of the data to take (default %(default)s)")
    parser.add_argument(
        "--remat", choices=("none", "dots", "full"), help="ours (default that of configs/quickstart.py)"
    )
    return parser.parse_args()


def describe(workload: str) -> str:
    if workload == "fixed":
        return f"fixed: {ROWS} × {LENGTH} tokens, all targets"
    return f"mixed: {EXAMPLES_A_STEP} examples a step, loss on the answers"


def measure(
    args: argparse.Namespace, model: dict[str, Any], workload: str, dtype: str, scratch: Path
) -> dict[str, dict[str, Any]]:
    """Starts one worker after the other, each to the end of its first step; then all alternate."""
    chosen = [arm for arm in args.arms if workload == "mixed" or not arm.endswith("padding_free")]
    documents = documents_of(workload, model["documents"])
    workers: dict[str, Worker] = {}
    arms: dict[str, dict[str, Any]] = {}
    try:
        for arm in alternating(chosen):
            first = {}
            if arm in OURS:
                cache = scratch / "compiled"
                shutil.rmtree(cache, ignore_errors=True)
                with Worker.ours(cache) as cold:
                    first["first_step_cold"] = start_ours(cold, args, model, workload, dtype, documents, arm)["seconds"]
                workers[arm] = Worker.ours(cache)
                started = start_ours(workers[arm], args, model, workload, dtype, documents, arm)
            else:
                workers[arm] = Worker.peer()
                started = start_peer(workers[arm], model, workload, dtype, documents, arm)
            first = {"first_step_cold": started["seconds"], **first, "first_step_warm": started["seconds"]}
            arms[arm] = {**first, "first_loss": started["loss"], "parameters": started["parameters"], "turns": []}
            workers[arm].ask("steps", count=1)
        if workload == "fixed":
            check_first_losses({arm: values["first_loss"] for arm, values in arms.items()})
        for _ in range(args.turns):
            for arm, worker in workers.items():
                arms[arm]["turns"].append(worker.turn("steps", count=args.steps))
        for arm, worker in workers.items():
            arms[arm]["peak_bytes"] = worker.ask("peak_memory")["bytes"]
    finally:
        for worker in workers.values():
            worker.close()
    return arms


def start_ours(worker: Worker, args, model, workload: str, dtype: str, documents, arm: str) -> dict[str, Any]:
    method, options = OURS[arm]
    rows = {"batch_size": ROWS, "sequence_length": LENGTH, "packing": False}
    if workload == "mixed":
        rows = {"batch_size": packed_rows(documents), "sequence_length": PACKED_LENGTH, "packing": True}
    worker.ask("load", folder=model["folders"][dtype], dtype=dtype)
    made = worker.ask("train", documents=documents, rows=rows, method=method, options=options, remat=args.remat)
    return first_step(worker, made)


def start_peer(worker: Worker, model, workload: str, dtype: str, documents, arm: str) -> dict[str, Any]:
    method, options = PEERS[arm]
    if method == "adaption_prompt":
        # Aligner's default: all layers but the first two.
        options = {**options, "adapter_layers": model["num_layers"] - 2}
    padding_free = arm.endswith("padding_free")
    batch_size = ROWS if workload == "fixed" else EXAMPLES_A_STEP
    worker.ask("load", folder=model["folders"][dtype], dtype=dtype)
    made = worker.ask(
        "train", documents=documents, batch_size=batch_size, method=method, options=options, padding_free=padding_free
    )
    started = first_step(worker, made)
    if padding_free:
        worker.ask("check_padding_free", documents=documents[:4])
    return started


def first_step(worker: Worker, made: dict[str, Any]) -> dict[str, Any]:
    loss = worker.ask("steps", count=1)["losses"][0]
    return {"seconds": worker.seconds_since_start(), "loss": loss, **made}


def documents_of(workload: str, documents: list[dict[str, list[int]]]) -> list[dict[str, list[int]]]:
    """Returns the examples themselves, or their text cut into full rows that fill whole batches."""
    if workload == "mixed":
        return documents
    tokens = list(itertools.chain.from_iterable(document["tokens"] for document in documents))
    whole = len(tokens) // (ROWS * LENGTH) * ROWS
    starts = range(0, min(whole, 64 * ROWS) * LENGTH, LENGTH)
    return [{"tokens": tokens[start : start + LENGTH], "loss_mask": [1] * LENGTH} for start in starts]


def packed_rows(documents: list[dict[str, list[int]]]) -> int:
    """Returns the number of packed rows that hold about as many examples as the peer's batches."""
    mean = sum(len(document["tokens"]) for document in documents) / len(documents)
    return max(1, round(EXAMPLES_A_STEP * mean / PACKED_LENGTH))


def alternating(arms: list[str]) -> list[str]:
    """Returns the arms, ours and the peer's alternating, and then the rest of the longer side."""
    sides = [[arm for arm in arms if arm in OURS], [arm for arm in arms if arm in PEERS]]
    return [arm for pair in itertools.zip_longest(*sides) for arm in pair if arm is not None]


def check_first_losses(losses: dict[str, float]) -> None:
    """Fails unless all arms begin at one loss: no adapter changes the model before its first update."""
    if max(losses.values()) - min(losses.values()) > FIRST_LOSS_TOLERANCE * min(losses.values()):
        raise SystemExit(f"error: on the same rows the arms begin at different losses: {losses}")


def as_table(arms: dict[str, dict[str, Any]]) -> str:
    """Formats every arm's figures, and ours relative to the best of the peer's."""
    header = [
        "arm",
        "trained",
        "quiet turns",
        "tokens/s (least..most)",
        "",
        "peak MB",
        "",
        "first step s, cold",
        "",
        "warm",
        "",
    ]
    columns = {
        "speed": max, "peak_bytes": min, "first_step_cold": min, "first_step_warm": min,
    }  # fmt: skip
    values = {arm: {**found, "speed": report.rates(found["turns"]).median} for arm, found in arms.items()}
    rows = []
    for arm, found in values.items():
        texts = [
            str(report.rates(found["turns"])), report.megabytes(found["peak_bytes"]),
            f"{found['first_step_cold']:.1f}", f"{found['first_step_warm']:.1f}",
        ]  # fmt: skip
        row = [arm, f"{found['parameters']:,}", report.quiet_text(found["turns"])]
        for text, (column, best) in zip(texts, columns.items(), strict=True):
            peers = [other[column] for name, other in values.items() if name in PEERS]
            ours = report.ratio(found[column], peers, best) if arm in OURS else None
            row += [text, report.ratio_text(ours)]
        rows.append(row)
    return report.table(header, rows)


if __name__ == "__main__":
    main()

"""Compares all methods, trained on the same rows for the same steps: Alpaca, GSM8K, and DPO on PKU-SafeRLHF.

    python -m aligner_jax.studies.compare_methods --data=FOLDER [--steps=…] [--dpo-steps=…] [--seeds=3] [--arms=…]
    python -m aligner_jax.studies.compare_methods --data=FOLDER --out=runs/tune --tune [--tasks=…]   # several rates

FOLDER holds sft/alpaca_random_9k.json, reasoning/gsm8k/train.jsonl and pref/pku_saferlhf_dpo_5k.json; --alpaca, --gsm8k
and --pku name files elsewhere. The default sizes take about an hour on two cores.

A cell is one task, arm and seed. It is one run of aligner_jax.train in a process of its own; on PKU-SafeRLHF it is two
runs: supervised training on the preferred answers, then DPO, which starts from that adapter and has it as reference.
The seed sets the order and packing of the rows, the same for all arms, and the adapter's initial values. All cells of a
task are evaluated on the same held-out examples, which share no prompt with the training examples; PKU-SafeRLHF is
evaluated on one pair per prompt. The learning rate follows a cosine schedule without warm-up from the arm's own rate
(see cells.py); weight decay is 0.02 for all arms.

Run the same command again to resume: finished cells are skipped. The tables are printed and written to OUT/table.md;
results of cells are in OUT/cells, and runs are in OUT/runs (a run of "full" takes gigabytes). No text of the data is
printed.
"""

import argparse
import sys
from fractions import Fraction
from pathlib import Path

from aligner_jax.runtime.files import write_atomically
from aligner_jax.studies import cell_runs, compare_table
from aligner_jax.studies.cells import ARMS, COMPARED, TASKS, Cell, Sizes, configs, seconds
from aligner_jax.studies.flag_values import MODEL, names, positive
from aligner_jax.studies.splits import FILES, split

_SCALES = "1/3,1,3"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, help="the folder of all data")
    for task, file in FILES.items():
        add(f"--{task}", type=Path, help=f"the task's file (default DATA/{file})")
    add("--base", default=MODEL, help="the model (default %(default)s)")
    add("--out", type=Path, default=Path("runs/compare"), help="where everything is kept (default %(default)s)")
    add("--tasks", type=names(TASKS), help=f"some of {','.join(TASKS)} (default all, or alpaca to --tune)")
    add(
        "--arms",
        type=names(tuple(ARMS)),
        default=",".join(COMPARED),
        help=f"some of {','.join(ARMS)} (default %(default)s)",
    )
    add(
        "--pku-arms", type=names(tuple(ARMS)), default="aligner_1,aligner_10,llama_adapter_10,lora_8",
        help="those of the arms that learn from preferences, which takes longest (default %(default)s)",
    )  # fmt: skip
    add("--seeds", type=positive, default=3, help="of the Aligner arms; the others have one (default %(default)s)")
    add("--all-seeds", action="store_true", help="as many for all arms")
    add("--steps", type=positive, default=16, help="of alpaca and gsm8k (default %(default)s)")
    add("--stage1-steps", type=positive, default=8, help="of pku's supervised stage (default %(default)s)")
    add("--dpo-steps", type=positive, default=40, help="of pku's second stage (default %(default)s)")
    add("--rows", type=positive, default=4, help="a step (default %(default)s)")
    add("--length", type=positive, default=256, help="tokens a row; longer examples are left out (default %(default)s)")
    add("--heldout", type=positive, default=48, help="examples of alpaca and gsm8k (default %(default)s)")
    add("--heldout-pairs", type=positive, default=300, help="of pku, each of another prompt (default %(default)s)")
    add(
        "--dtype", choices=("bfloat16", "float32", "auto"), default="bfloat16", help="of the base (default %(default)s)"
    )
    add("--tune", action="store_true", help="try several learning rates an arm instead, on other held-out examples")
    add(
        "--scales", type=_scales, default=_SCALES,
        help="to --tune: what the arm's own rate is multiplied by (default %(default)s)",
    )  # fmt: skip
    add("--tuning-heldout", type=positive, help="to --tune: as --heldout and --heldout-pairs, which stay apart")
    args = parser.parse_args()
    if args.tasks is None:
        args.tasks = ["alpaca"] if args.tune else list(TASKS)
    for task in args.tasks:
        if getattr(args, task) is None:
            if args.data is None:
                parser.error(f"--data=FOLDER or --{task}=FILE is needed")
            setattr(args, task, args.data / FILES[task])
    return args


def compare(args: argparse.Namespace) -> int:
    """Runs the missing cells and writes the tables; returns the exit status."""
    sizes = Sizes(
        base=args.base, dtype=args.dtype, rows=args.rows, length=args.length,
        steps=args.steps, stage1_steps=args.stage1_steps, dpo_steps=args.dpo_steps,
    )  # fmt: skip
    splits = {
        task: split(
            task, getattr(args, task), args.heldout_pairs if task == "pku" else args.heldout, args.out / "data",
            tuning=args.tune, tuning_heldout=args.tuning_heldout,
        )
        for task in args.tasks
    }  # fmt: skip
    cells = plan(args)
    settings = {cell: configs(cell, sizes, splits[cell.task], args.out / "runs") for cell in cells}
    found = {cell: cell_runs.finished(cell, settings[cell], args.out) for cell in cells}
    results = {cell: result for cell, result in found.items() if result is not None}
    missing = [cell for cell in cells if cell not in results]
    expected = {cell: seconds(cell, sizes, splits[cell.task]) for cell in cells}
    print(cell_runs.forecast(cells, missing, expected), flush=True)
    for part in (part for task in splits.values() for part in (task.train, task.heldout)):
        part.write()
    failures = cell_runs.make(
        missing, settings.__getitem__, expected, results, args.out, line=compare_table.line
    )  # fmt: skip
    # Restores the plan's order, since some results were loaded and others made.
    results = {cell: results[cell] for cell in cells if cell in results}
    text = compare_table.tuning(args.tasks, results) if args.tune else compare_table.tables(args.tasks, results, sizes)
    write_atomically(args.out / "table.md", text)
    print(f"\n{text}\n{args.out / 'table.md'}")
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    return 1 if failures else 0


def plan(args: argparse.Namespace) -> list[Cell]:
    """Returns all cells, ordered by seed, so that a table of all methods is complete early."""
    if args.tune:
        return [
            Cell(task, arm, 0, scale)
            for task in args.tasks
            for arm in args.arms
            if task != "pku" or arm in args.pku_arms
            for scale in args.scales
        ]
    return [
        Cell(task, arm, seed)
        for seed in range(args.seeds)
        for task in args.tasks
        for arm in args.arms
        if task != "pku" or arm in args.pku_arms
        if seed == 0 or args.all_seeds or ARMS[arm].method == "aligner"
    ]


def _scales(text: str) -> tuple[float, ...]:
    return tuple(float(Fraction(part)) for part in text.split(","))


_scales.__name__ = "list of numbers such as 1/3,1,3"

if __name__ == "__main__":
    cell_runs.main(lambda: compare(arguments()))

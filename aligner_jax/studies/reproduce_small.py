"""Reproduces the paper's two claims on SmolLM2-135M: how much of LoRA's improvement Aligners of 1 to 300 tokens keep.

    bash scripts/reproduce_small.sh [DATA_FOLDER] [--large] [--out=DIR] [--steps=…] [--seeds=…] [--rates=…]

The form task is Alpaca, and the reasoning task is GSM8K's training part. DATA_FOLDER (default data) holds
sft/alpaca_random_9k.json and reasoning/gsm8k/train.jsonl; --alpaca and --gsm8k name files elsewhere. The default takes
60 to 90 minutes on two idle cores. --large has longer runs, more arms and more held-out examples, and its own folder.

All arms are tuned alike: one run trains the arm at all of the learning rates, which are compared on separate held-out
examples. Then the arm is trained at its best rate once per seed. The seed sets the order of the rows, the same for all
arms, and the adapter's initial values. All arms are evaluated on the same held-out examples, which share no prompt with
the training examples.

Run the same command again to resume: finished runs are skipped. The tables are printed and written to OUT/table.md; the
figures are OUT/alpaca.png and OUT/gsm8k.png (and .svg), and their numbers are in OUT/results.json. Results of cells are
in OUT/cells, and runs are in OUT/runs. No text of the data is printed.
"""

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aligner_jax.runtime.files import write_atomically
from aligner_jax.studies import cell_runs, reproduce_table
from aligner_jax.studies.cells import ARMS, Cell, Sizes
from aligner_jax.studies.flag_values import MODEL, names, positive
from aligner_jax.studies.reproduce_cells import Grid, Results, Tuning, best_rate, has_rate, line
from aligner_jax.studies.reproduce_plots import plot
from aligner_jax.studies.reproduce_shares import Measured, measure
from aligner_jax.studies.splits import FILES, split

TASKS = ("alpaca", "gsm8k")
DEFAULT = {
    "out": Path("runs/reproduce"), "steps": 36, "rows": 2, "heldout": 96, "tuning_heldout": 48,
    "form_arms": "aligner_1,aligner_10,lora_8",
    "reasoning_arms": "aligner_1,aligner_10,aligner_100,aligner_300,lora_8",
}  # fmt: skip
_WIDE = "aligner_1,aligner_10,aligner_100,aligner_300,llama_adapter_10,lora_8"
LARGE = {
    "out": Path("runs/reproduce_large"), "steps": 96, "rows": 4, "heldout": 192, "tuning_heldout": 96,
    "form_arms": _WIDE, "reasoning_arms": _WIDE,
}  # fmt: skip


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        # The defaults below depend on "--large" in argv, so it must not be abbreviated.
        allow_abbrev=False,
    )  # fmt: skip
    add, arms = parser.add_argument, names(tuple(name for name, arm in ARMS.items() if arm.method != "full"))
    add("data", nargs="?", type=Path, default=Path("data"), help="the folder of all data (default %(default)s)")
    for task in TASKS:
        add(f"--{task}", type=Path, help=f"the task's file (default DATA/{FILES[task]})")
    add("--large", action="store_true", help="the larger grid: other defaults for the options below")
    add("--out", type=Path, help="where everything is kept (default %(default)s)")
    add("--base", default=MODEL, help="the model (default %(default)s)")
    add("--template", choices=("chat", "alpaca"), default="chat", help="the prompts' (default %(default)s)")
    add("--form-arms", type=arms, help="those of alpaca (default %(default)s)")
    add("--reasoning-arms", type=arms, help="those of gsm8k (default %(default)s)")
    add("--seeds", type=positive, default=3, help="of every arm (default %(default)s)")
    add("--rates", type=_rates, default="0.001,0.003,0.01,0.03", help="that are tried (default %(default)s)")
    add("--steps", type=positive, help="of every run (default %(default)s)")
    add("--rows", type=positive, help="a step (default %(default)s)")
    add("--length", type=positive, default=256, help="tokens a row; longer examples are left out (default %(default)s)")
    add("--heldout", type=_several, help="examples of each task (default %(default)s)")
    add("--tuning-heldout", type=positive, help="other examples of each task, for tuning (default %(default)s)")
    add(
        "--dtype", choices=("bfloat16", "float32", "auto"), default="bfloat16", help="of the base (default %(default)s)"
    )
    parser.set_defaults(**(LARGE if "--large" in sys.argv else DEFAULT))
    args = parser.parse_args()
    for task in TASKS:
        if getattr(args, task) is None:
            setattr(args, task, args.data / FILES[task])
    return args


def reproduce(args: argparse.Namespace) -> int:
    """Runs the missing cells and writes tables and figures; returns the exit status."""
    grid = grid_of(args)
    results: dict[Cell | Tuning, dict[str, Any]] = {}
    cells = grid.cells()
    for cell in cells:
        # A seed's rate comes from its arm's tuning, which is earlier in the list. If that is missing, the cell reports
        # it when it runs.
        known = isinstance(cell, Tuning) or has_rate(results, cell.task, cell.arm)
        found = cell_runs.finished(cell, grid.settings(cell, results), args.out) if known else None
        if found is not None:
            results[cell] = found
    missing = [cell for cell in cells if cell not in results]
    expected = {cell: grid.seconds(cell) for cell in cells}
    print(cell_runs.forecast(cells, missing, expected), flush=True)
    for part in (
        part for kind in (grid.splits, grid.tuning) for of in kind.values() for part in (of.train, of.heldout)
    ):
        part.write()

    def after(cell: Cell | Tuning) -> None:
        if isinstance(cell, Cell):
            write(grid, results, args.out)

    failures = cell_runs.make(
        missing, lambda cell: grid.settings(cell, results), expected, results, args.out, line=line, after=after
    )
    if text := write(grid, results, args.out):
        print(f"\n{text}\n{args.out / 'table.md'}")
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    return 1 if failures else 0


def grid_of(args: argparse.Namespace) -> Grid:
    """Returns the grid for the command line's arguments.

    Raises:
      InputError: a data file cannot be used, or has too few examples.
    """
    arms = {"alpaca": args.form_arms, "gsm8k": args.reasoning_arms}
    files = {task: getattr(args, task) for task in arms}
    splits = {task: split(task, file, args.heldout, args.out / "data") for task, file in files.items()}
    tuning = {
        task: split(task, file, args.heldout, args.out / "data", tuning=True, tuning_heldout=args.tuning_heldout)
        for task, file in files.items()
    }
    sizes = Sizes(base=args.base, dtype=args.dtype, rows=args.rows, length=args.length, steps=args.steps)
    return Grid(arms, args.seeds, args.rates, sizes, splits, tuning, args.template)


def write(grid: Grid, results: Results, out: Path) -> str:
    """Writes tables and figures of the results so far, and returns the text of the tables; "" without results."""
    parts, numbers = [], {}
    for task, arms in grid.arms.items():
        tried = {arm: results[Tuning(task, arm)] for arm in arms if Tuning(task, arm) in results}
        by_arm: dict[str, dict[int, Mapping[str, Any]]] = {}
        for cell, result in results.items():
            if isinstance(cell, Cell) and cell.task == task:
                by_arm.setdefault(cell.arm, {})[cell.seed] = result
        if not by_arm:
            continue
        measured = measure(by_arm, {arm: best_rate(results, task, arm) for arm in by_arm})
        one = next(iter(next(iter(by_arm.values())).values()))
        base_loss, documents = one["base_loss"], len(one["documents"])
        plot(reproduce_table.TITLES[task], measured, base_loss, documents, out / task)
        parts += [
            reproduce_table.table(task, measured, base_loss, documents, grid.rates),
            reproduce_table.claims(task, measured),
            reproduce_table.tuning(task, tried),
        ]
        numbers[task] = {"base_loss": base_loss, "documents": documents, "arms": _plain(measured)}
    if not parts:
        return ""
    text = "\n".join(part for part in [reproduce_table.about(grid.sizes), *parts] if part)
    write_atomically(out / "table.md", text)
    write_atomically(out / "results.json", json.dumps(numbers, indent=1) + "\n")
    return text


def _plain(measured: Sequence[Measured]) -> list[dict[str, Any]]:
    return [dataclasses.asdict(each) for each in measured]


def _several(text: str) -> int:
    # An interval needs at least two examples.
    value = int(text)
    if value < 2:
        raise ValueError
    return value


def _rates(text: str) -> tuple[float, ...]:
    rates = tuple(float(part) for part in text.split(","))
    if not all(0 < rate < math.inf for rate in rates) or len(set(rates)) < len(rates):
        raise ValueError
    return rates


_rates.__name__ = "list of different rates such as 0.001,0.01"
_several.__name__ = "whole number above 1"

if __name__ == "__main__":
    cell_runs.main(lambda: reproduce(arguments()))

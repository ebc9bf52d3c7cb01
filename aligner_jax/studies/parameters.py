"""Measures what trained parameters buy: success of form, knowledge and reasoning, from 828 of them to millions.

    python -m aligner_jax.studies.parameters [DATA_FOLDER] [--large] [--out=DIR] [--arms=…] [--tasks=…] [--minutes=…]

Every arm learns every task until its run is over: the rate stays constant until the held-out loss is near its
extrapolated end, or until the budget is used, and then falls to 0. Rates are searched for every arm alike, on the first
task of a family, until worse ones are on both sides. Then answers to held-out prompts are checked by programs.

Without DATA_FOLDER the questions of form are the quickstart's. A folder that holds sft/alpaca_random_9k.json gives
Alpaca's, and with reasoning/gsm8k/train.jsonl the tasks loss/alpaca and loss/gsm8k can be named too. Tasks of reasoning
need `pip install 'aligner_jax[study]'`.

Run the same command again to go on: finished runs are kept in OUT. With --minutes no run begins that would not end in
time, so that a borrowed accelerator is given back. Tables are printed and written to OUT/table.md, figures to
OUT/*.png and *.svg. No text of the data is printed.
"""

import argparse
import math
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from aligner_jax.runtime import platform
from aligner_jax.runtime.config import OptimConfig
from aligner_jax.runtime.files import write_atomically
from aligner_jax.studies import bits, command, curve, curve_plot, curve_table
from aligner_jax.studies.arms import ARMS, parse_arm
from aligner_jax.studies.curve import Reached
from aligner_jax.studies.families import tasks as families
from aligner_jax.studies.families.task import Sizes
from aligner_jax.studies.flag_values import MODEL, names, positive
from aligner_jax.studies.prepared import Rows
from aligner_jax.studies.prepared_pairs import prepare
from aligner_jax.studies.stopping import Rule
from aligner_jax.studies.study import Plan, Study
from aligner_jax.weights.base import load_base

UNFINISHED = 3
"""Exit status of a study that goes on with the same command."""
DEFAULT = {
    "out": Path("runs/parameters"), "arms": "aligner_1,aligner_10,aligner_1_sums,aligner_7_sums,bias,lora_8",
    "tasks": "form/json,form/lower,form/phrases,knowledge/facts,reasoning/chain_sum", "seeds": 1, "budget": 80,
    "rows": 2, "length": 256, "train": 192, "heldout": 24, "prompts": 48, "facts": 48,
}  # fmt: skip
LARGE = {
    "out": Path("runs/parameters_large"), "arms": ",".join(ARMS), "tasks": ",".join(families.NAMES), "seeds": 3,
    "budget": 600, "rows": 8, "length": 512, "train": 704, "heldout": 64, "prompts": 128, "facts": 200,
}  # fmt: skip


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        # The defaults below depend on "--large" in argv, so it must not be abbreviated.
        allow_abbrev=False,
    )  # fmt: skip
    add = parser.add_argument
    add("data", nargs="?", type=Path, help="the folder of all data (default: the quickstart's questions alone)")
    add("--large", action="store_true", help="all arms and tasks: for an accelerator, or days")
    add("--out", type=Path, help="where everything is kept (default %(default)s)")
    add("--base", default=MODEL, help="the model (default %(default)s)")
    add("--arms", type=names(tuple(ARMS)), help="methods (default %(default)s)")
    add(
        "--arm", type=parse_arm, action="append", default=[], metavar="NAME=METHOD,OPTION=VALUE,…",
        help="a further arm; rate=… begins its search, and optim.FIELD=… is of the optimizer",
    )  # fmt: skip
    add("--tasks", type=names(families.NAMES), help="tasks (default %(default)s)")
    add("--seeds", type=positive, help="of every arm and task (default %(default)s)")
    add("--budget", type=positive, help="optimizer steps of a run at most (default %(default)s)")
    add("--tolerance", type=float, default=Rule.tolerance, help="share of the loss still to come at the end")
    add("--warmup", type=positive, default=Rule.warmup, help="steps in which the rate rises (default %(default)s)")
    add("--rows", type=positive, help="a step (default %(default)s)")
    add("--length", type=positive, help="tokens a row; longer examples are left out (default %(default)s)")
    add("--train", type=positive, help="training examples of a task (default %(default)s)")
    add("--heldout", type=positive, help="examples that end runs and choose rates (default %(default)s)")
    add("--prompts", type=positive, help="prompts whose answers are checked (default %(default)s)")
    add("--facts", type=positive, help="facts of knowledge/facts (default %(default)s)")
    add("--together", type=positive, default=1, help="runs of an arm that are trained at once (default %(default)s)")
    add("--minutes", type=float, default=math.inf, help="time in which all begun runs end (default: no limit)")
    add("--bits", action="store_true", help="answer with the Aligners in fewer bytes too, where answers are checked")
    add("--dtype", choices=("bfloat16", "float32", "auto"), default="bfloat16", help="default %(default)s")
    parser.set_defaults(**(LARGE if "--large" in sys.argv else DEFAULT))
    args = parser.parse_args()
    repeated = {arm.name for arm in args.arm if sum(arm.name == other.name for other in args.arm) > 1}
    if repeated:
        parser.error(f"--arm={min(repeated)}=… is given twice: give each arm a name of its own")
    return args


def run(args: argparse.Namespace) -> int:
    """Runs the missing cells and writes tables and figures; returns the exit status."""
    until = time.monotonic() + 60 * args.minutes
    rows = Rows(args.rows, args.length)
    sizes = Sizes(train=args.train, heldout=args.heldout, prompts=args.prompts, facts=args.facts)
    made = families.tasks(args.tasks, data=args.data, sizes=sizes)
    by_family: dict[str, list[str]] = {}
    for task in made:
        by_family.setdefault(task.family, []).append(task.name)
    plan = Plan(
        arms={name: ARMS[name] for name in args.arms} | {arm.name: arm for arm in args.arm}, families=by_family,
        seeds=args.seeds, rule=Rule(budget=args.budget, tolerance=args.tolerance, warmup=args.warmup), rows=rows,
        optim=OptimConfig(weight_decay=0.0),
    )  # fmt: skip
    runs, minutes = plan.forecast({task.family: task for task in made}, rounded=args.bits)
    print(f"about {minutes:.0f} minutes on two cores for {runs} runs; finished ones are kept", flush=True)
    base = load_base(args.base, platform.compute_dtype(args.dtype))
    prepared = {task.name: prepare(task, base, rows) for task in made}
    for task in prepared.values():
        if task.left_out:
            print(f"{task.task.name}: {task.left_out} examples are longer than {args.length} tokens and left out")
    study = Study(
        plan, base, prepared, args.out, together=args.together, until=until, say=lambda line: print(line, flush=True)
    )
    relative = {task.family for task in made if task.after}
    complete = study.run(lambda family: _draw(study, plan, args.out, [family], relative))
    text = write(study, plan, args.out, relative)
    if args.bits:
        of_bits, all_measured = write_bits(study, plan, args.out)
        text, complete = text + of_bits, complete and all_measured
    print(f"\n{text}\n{args.out / 'table.md'}")
    if not complete:
        print("not all runs had time; the same command goes on", file=sys.stderr)
    return 0 if complete else UNFINISHED


def write(study: Study, plan: Plan, out: Path, relative: Collection[str]) -> str:
    """Writes tables and figures of the results so far, and returns the text of the tables.

    Args:
      study: the study.
      plan: its plan.
      out: folder to write to.
      relative: families whose success is relative to the adapter that a run began from. A share of the reference's
        says nothing there.
    """
    found = _draw(study, plan, out, list(plan.families), relative)
    parts = [curve_table.about(study, plan), curve_table.NOTE]
    for family, arms in found.items():
        tasks = plan.families[family]
        parts += [
            curve_table.family_table(f"{family}: {', '.join(tasks)}", curve.base_success(study, tasks), arms),
            curve_table.tested_table(arms),
            curve_table.rates_table(study, tasks[0], list(plan.arms)),
        ]
    parts.append(curve_table.needed_table(_absolute(found, relative)))
    text = "\n".join(part for part in parts if part)
    write_atomically(out / "table.md", text)
    return text


def _draw(
    study: Study, plan: Plan, out: Path, families: Sequence[str], relative: Collection[str]
) -> dict[str, list[Reached]]:
    """Writes the figures of families, and returns their results."""
    found = {}
    for family in families:
        tasks = plan.families[family]
        if arms := curve.reached(study, tasks, plan.arms):
            found[family] = arms
            curve_plot.plot_courses(study, tasks[0], plan.arms, out / f"{family}_steps")
            curve_plot.plot_family(family, curve.base_success(study, tasks), arms, out / family)
    if len(families) == len(plan.families):
        curve_plot.plot_needed(_absolute(found, relative), out / "needed")
    return found


def _absolute(found: Mapping[str, list[Reached]], relative: Collection[str]) -> dict[str, list[Reached]]:
    return {family: arms for family, arms in found.items() if family not in relative}


def write_bits(study: Study, plan: Plan, out: Path) -> tuple[str, bool]:
    """Measures Aligners in fewer bytes, and adds tables and figures to those written.

    Returns:
      The text of the tables, and True if nothing is missing.
    """
    parts, complete = [], True
    aligners = [arm for arm in plan.arms.values() if arm.method == "aligner"]
    for family, tasks in plan.families.items():
        if curve.base_success(study, tasks) is None:
            continue
        measured, is_all = bits.measure(study, tasks, aligners, plan.seeds)
        complete &= is_all
        if measured:
            parts.append(bits.table(family, measured))
            bits.plot(family, measured, out / f"{family}_bytes")
    text = "".join(f"\n{part}" for part in parts)
    write_atomically(out / "table.md", (out / "table.md").read_text(encoding="utf-8") + text)
    return text, complete


if __name__ == "__main__":
    command.main(lambda: run(arguments()))

"""Markdown tables of compare_methods.py."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from aligner_jax.evals.estimates import ratio
from aligner_jax.evals.interval import grouped_interval
from aligner_jax.studies.cells import ARMS, Cell, Sizes

Results = Mapping[Cell, Mapping[str, Any]]


def tables(tasks: Sequence[str], results: Results, sizes: Sizes) -> str:
    """Returns one table per task, with the cells that have a result."""
    made = []
    for task in tasks:
        of_task = {cell: result for cell, result in results.items() if cell.task == task}
        if of_task:
            made.append(preferences(of_task, sizes) if task == "pku" else answers(task, of_task, sizes))
    return "\n".join(made)


def answers(task: str, results: Results, sizes: Sizes) -> str:
    """Returns the table of held-out losses of a supervised task, lowest first."""
    by_arm = _by_arm(results)
    base = next(iter(results.values()))["base_loss"]
    rows = [["base", "0", f"{base:.4f}", "", "", ""]]
    for arm in sorted(by_arm, key=lambda arm: _last_if_nan(_mean(by_arm[arm], "loss"))):
        found = by_arm[arm]
        rows.append(
            [
                arm, f"{found[0]['parameters']:,}", _spread(found, "loss", "{:.4f}"),
                f"{_mean(found, 'loss') - base:+.4f}", f"{_mean(found, 'tokens_per_second'):,.0f}", str(len(found)),
            ]
        )  # fmt: skip
    header = ["arm", "trained parameters", "held-out loss (nats a token)", "against the base", "tokens/s", "seeds"]
    steps = f"{sizes.steps} steps of {sizes.rows} × {sizes.length} tokens"
    return f"## {task}: {steps}\n\n{markdown(header, rows)}"


def preferences(results: Results, sizes: Sizes) -> str:
    """Returns the table of held-out DPO accuracies, highest first, with 95 % intervals over prompts and seeds."""
    by_arm = _by_arm(results)
    rows = []
    for arm in sorted(by_arm, key=lambda arm: _last_if_nan(-_mean(by_arm[arm], "accuracy"))):
        found = by_arm[arm]
        low, high = _interval(found)
        rows.append(
            [
                arm, f"{found[0]['parameters']:,}", _spread(found, "accuracy", "{:.3f}"), f"[{low:.3f}, {high:.3f}]",
                _spread(found, "margin", "{:+.3f}"), f"{_mean(found, 'tokens_per_second'):,.0f}", str(len(found)),
            ]
        )  # fmt: skip
    one = next(iter(results.values()))
    header = ["arm", "trained parameters", "held-out accuracy", "95 % interval", "reward margin", "tokens/s", "seeds"]
    steps = f"{sizes.stage1_steps} supervised, then {sizes.dpo_steps} DPO steps of {sizes.rows} × {sizes.length} tokens"
    return f"## pku: {steps}; {one['pairs']} held-out pairs of {one['prompts']} prompts\n\n{markdown(header, rows)}"


def tuning(tasks: Sequence[str], results: Results) -> str:
    """Returns one table per task with the held-out loss of every arm at every learning rate that was tried."""
    made = []
    for task in tasks:
        losses = {(cell.arm, cell.rate_scale): x["loss"] for cell, x in results.items() if cell.task == task}
        scales = sorted({scale for _, scale in losses})
        rows = []
        for arm in dict.fromkeys(arm for arm, _ in losses):
            rate = ARMS[arm].dpo if task == "pku" else ARMS[arm].sft
            best = min((scale for of, scale in losses if of == arm), key=lambda scale: _last_if_nan(losses[arm, scale]))
            tried = [f"{losses[arm, scale]:.4f}" if (arm, scale) in losses else "" for scale in scales]
            rows.append([arm, f"{rate:.2g}", *tried, f"{rate * best:.2g}"])
        header = ["arm", "its rate", *(f"loss at × {scale:.3g}" for scale in scales), "best rate"]
        if rows:
            made.append(f"## {task}: learning rates, on held-out examples of their own\n\n{markdown(header, rows)}")
    return "\n".join(made)


def line(result: Mapping[str, Any]) -> str:
    """Returns a cell's result in a few words."""
    if "accuracy" in result:
        low, high = result["accuracy_interval"]
        found = f"accuracy {result['accuracy']:.3f} [{low:.3f}, {high:.3f}], margin {result['margin']:+.3f}"
    else:
        found = f"held-out loss {result['loss']:.4f} (base {result['base_loss']:.4f})"
    return f"{found}, {result['tokens_per_second']:,.0f} tokens/s, {result['seconds']:.0f} s"


def _by_arm(results: Results) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for cell, result in results.items():
        found.setdefault(cell.arm, []).append(result)
    return found


def _mean(results: Sequence[Mapping[str, Any]], name: str) -> float:
    return statistics.fmean(result[name] for result in results)


def _last_if_nan(value: float) -> float:
    """Returns a sort key that puts diverged runs last."""
    return math.inf if math.isnan(value) else value


def _interval(results: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Returns the 95 % interval of the mean accuracy, over prompts and, if there are several, seeds."""
    # All seeds are evaluated on the same pairs, in the same order.
    each_sm2 = np.array([result["each"] for result in results])
    prompt_m, right_sm = each_sm2[0, :, 0].astype(int), each_sm2[:, :, 1]
    if not np.isfinite(right_sm).all():
        return math.nan, math.nan
    if len(results) == 1:
        return grouped_interval(right_sm[0], prompt_m)
    right_sn, pairs_sn = (np.stack([np.bincount(prompt_m, x_m) for x_m in x_sm]) for x_sm in (right_sm, right_sm**0))
    there_n = pairs_sn[0] > 0
    found = ratio(right_sn[:, there_n], pairs_sn[:, there_n])
    return max(0.0, found.low), min(1.0, found.high)


def _spread(results: Sequence[Mapping[str, Any]], name: str, form: str) -> str:
    """Returns the mean and, for several seeds, the standard deviation over them."""
    values = [result[name] for result in results]
    text: Callable[[float], str] = form.format
    if len(values) == 1:
        return text(values[0])
    # statistics.stdev raises for NaN.
    deviation = statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan
    return f"{text(statistics.fmean(values))} ± {text(deviation).lstrip('+')}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table. The first column is text, and the others are numbers."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]

    def padded(row: Sequence[str]) -> str:
        first, *others = zip(row, widths, strict=True)
        cells = [first[0].ljust(first[1]), *(text.rjust(width) for text, width in others)]
        return f"| {' | '.join(cells)} |"

    first, *others = widths
    rule = f"| {'-' * first} | {' | '.join('-' * (width - 1) + ':' for width in others)} |"
    return "\n".join([padded(header), rule, *map(padded, rows)]) + "\n"

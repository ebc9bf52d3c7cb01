"""Markdown tables of reproduce_small.py."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from aligner_jax.evals.estimates import Estimate
from aligner_jax.studies.cells import Sizes
from aligner_jax.studies.compare_table import markdown
from aligner_jax.studies.reproduce_shares import REFERENCE, Measured, without_share

TITLES = {"alpaca": "Form (Alpaca)", "gsm8k": "Reasoning (GSM8K)"}
NOTE = f"""\
Intervals are 95 %, over seeds and held-out examples together, paired by example with the base and by seed with
{REFERENCE} (aligner_jax/evals/estimates.py says how). Every arm had the same rows in the same order, and the same
tuning: one run with one seed for each of the same learning rates, on held-out examples that are not those of these
tables, and as many steps. "edge" marks an arm whose best rate is the smallest or the largest of those that were tried.
"""


def table(task: str, measured: Sequence[Measured], base_loss: float, documents: int, rates: Sequence[float]) -> str:
    """Returns the table of a task's arms, in the order of `measured`."""
    reference = next((each.parameters for each in measured if each.arm == REFERENCE), None)
    rows = [["base", "0", "", "", f"{base_loss:.4f}", "", "", ""]]
    for each in measured:
        edge = " (edge)" if len(rates) > 1 and each.rate in (min(rates), max(rates)) else ""
        rows.append(
            [
                each.arm, f"{each.parameters:,}", f"{each.parameters / reference:.2%}" if reference else "",
                f"{each.rate:g}{edge}", f"{each.loss:.4f}", interval(each.gain, "{:.4f}"),
                percent(each.share), str(len(each.seeds)),
            ]
        )  # fmt: skip
    header = [
        "arm", "trained parameters", f"of {REFERENCE}'s", "learning rate", "held-out loss (nats a token)",
        "below the base", f"share of {REFERENCE}'s improvement", "seeds",
    ]  # fmt: skip
    return f"## {TITLES[task]}, {documents} held-out examples\n\n{markdown(header, rows)}"


def tuning(task: str, results: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the table of held-out losses by arm and learning rate; an arm's lowest loss is bold."""
    rows, rates = [], []
    for arm, result in results.items():
        losses = [each["heldout_loss"] for each in result["sweep"]]
        rates = [f"{each['lr']:g}" for each in result["sweep"]]
        least = min((loss for loss in losses if math.isfinite(loss)), default=None)
        rows.append([arm, *(f"**{loss:.4f}**" if loss == least else f"{loss:.4f}" for loss in losses)])
    return f"### Learning rates tried, loss on held-out examples of their own\n\n{markdown(['arm', *rates], rows)}"


def claims(task: str, measured: Sequence[Measured]) -> str:
    """Returns one sentence per Aligner with the share that it keeps."""
    said = []
    for each in (each for each in measured if each.arm.startswith("aligner_")):
        name = f"Aligner-{each.arm.removeprefix('aligner_')} ({each.parameters:,} parameters)"
        if each.share is None:
            said.append(f"- {name}: no share, since {without_share(each, measured)}.")
        else:
            said.append(f"- {name} keeps {percent(each.share)} of {REFERENCE}'s improvement.")
    return "\n".join(said) + "\n" if said else ""


def about(sizes: Sizes) -> str:
    """Returns the introduction to all tables: base, steps, and how to read them."""
    return f"{sizes.base}, {sizes.steps} steps of {sizes.rows} × {sizes.length} tokens.\n\n{NOTE}"


def percent(share: Estimate | None) -> str:
    """Returns a share and its interval in percent, as text."""
    if share is None:
        return "not known"
    if share.low == share.high:
        return f"{share.value:.0%}"
    return f"{share.value:.0%} [{share.low:.0%}, {share.high:.0%}]"


def interval(estimate: Estimate, form: str) -> str:
    """Returns a number and its interval as text."""
    value, low, high = (form.format(x) for x in (estimate.value, estimate.low, estimate.high))
    return f"{value} [{low}, {high}]"

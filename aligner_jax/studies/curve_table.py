"""Tables of the study of form, knowledge and reasoning, as Markdown."""

import collections
import math
from collections.abc import Mapping, Sequence

from aligner_jax.evals.estimates import Estimate
from aligner_jax.studies.curve import REFERENCE, SHARE, Reached, needed_by_kind
from aligner_jax.studies.rates import best_rate
from aligner_jax.studies.study import Plan, Study

NOTE = """\
Intervals are 95 %: of a success over questions, and over seeds if there are several; of test losses and shares over
examples or questions and seeds, paired with the reference. A run ends when its held-out loss is within the tolerance of
its extrapolated end at a constant rate ("converged"), or when its budget of steps is used; then its rate falls to 0.
The rate of an arm is the best on the family's first task, by that loss, of a grid that is extended until worse rates
are on both sides; "edge" marks an arm whose grid ended before.
"""


def about(study: Study, plan: Plan) -> str:
    """Returns the settings of all runs, and the devices that they ran on."""
    devices = collections.Counter(result.device for result in study.results.values())
    rule, rows = plan.rule, plan.rows
    return (
        f"{study.base_name}, at most {rule.budget} steps of {rows.rows} × {rows.length} tokens, tolerance "
        f"{rule.tolerance:.1%} of the loss, {plan.seeds} seed{'s' if plan.seeds > 1 else ''}; "
        f"{'; '.join(f'{count} runs on {device}' for device, count in sorted(devices.items())) or 'no runs yet'}\n"
    )


def family_table(family: str, base: Estimate | None, arms: Sequence[Reached]) -> str:
    """Returns the table of a family's arms."""
    checked = any(each.success is not None for each in arms)
    several = len({each.devices for each in arms}) > 1
    rows = [["base", "0", *([percent(base), ""] if checked else []), "", "", "", ""]]
    for each in arms:
        rows.append(
            [
                each.arm, f"{each.parameters:,}",
                *([percent(each.success), percent(each.success_share)] if checked else []),
                f"{each.gain:.3f}", "" if math.isnan(each.gain_share) else f"{each.gain_share:.0%}",
                f"{each.rate:g}{'' if each.inside else ' (edge)'}",
                f"{each.converged} of {each.runs} converged, {each.steps:.0f} steps"
                + (f", {each.devices}" if several else "") + ("" if each.is_whole else "; more to come"),
            ]
        )  # fmt: skip
    header = [
        "arm", "trained parameters", *(["success", f"of {REFERENCE}'s"] if checked else []),
        "held-out loss below the base, nats a token (used to choose)", f"of {REFERENCE}'s", "rate", "runs",
    ]  # fmt: skip
    return f"## {family}\n\n{markdown(header, rows)}"


def tested_table(arms: Sequence[Reached]) -> str:
    """Returns the table of the losses on test examples; "" if there are none."""
    rows = []
    for each in arms:
        if each.test_gain is None:
            continue
        value, low, high = (f"{x:.4f}" for x in (each.test_gain.value, each.test_gain.low, each.test_gain.high))
        rows.append([each.arm, f"{each.parameters:,}", f"{value} [{low}, {high}]", percent(each.test_share)])
    if not rows:
        return ""
    header = ["arm", "trained parameters", "loss below the base, nats a token", f"of {REFERENCE}'s"]
    return f"Test examples, on which no choice was made:\n\n{markdown(header, rows)}"


def rates_table(study: Study, task: str, arms: Sequence[str]) -> str:
    """Returns the table of held-out losses by arm and rate; an arm's lowest one is bold."""
    rows = []
    for arm in arms:
        tried = study.tried(arm, task)
        best = best_rate(tried)
        losses = (
            f"{rate:g}: {'**' if rate == best else ''}{loss:.4f}{'**' if rate == best else ''}"
            for rate, loss in sorted(tried.items())
        )
        if tried:
            rows.append([arm, ", ".join(losses)])
    return f"Rates tried on {task}, and held-out losses:\n\n{markdown(['arm', 'rate: loss'], rows)}" if rows else ""


def needed_table(families: Mapping[str, Sequence[Reached]]) -> str:
    """Returns the table of the parameters with which Aligners reach 90 % of the reference's success."""
    found = {family: needed_by_kind(arms) for family, arms in families.items()}
    kinds = list(dict.fromkeys(kind for numbers in found.values() for kind in numbers))
    rows = []
    for family, numbers in found.items():
        whole = next((each.success for each in families[family] if each.arm == REFERENCE), None)
        if numbers:
            rows.append([family, percent(whole), *(str(numbers[kind]) if kind in numbers else "" for kind in kinds)])
    if not rows:
        return ""
    header = ["family", f"success of {REFERENCE}", *(f"parameters of {kind} for {SHARE:.0%} of it" for kind in kinds)]
    note = "Interpolated between arms; intervals are a bootstrap over questions and seeds."
    return f"## Parameters for {SHARE:.0%} of {REFERENCE}'s success\n\n{markdown(header, rows)}\n{note}\n"


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


def percent(share: Estimate | None) -> str:
    """Returns a share and its interval as text; "" for None."""
    return "" if share is None else f"{share.value:.0%} [{share.low:.0%}, {share.high:.0%}]"

"""Tables of the study of form, knowledge and reasoning, as Markdown."""

import math
from collections.abc import Mapping, Sequence

from aligner_jax.evals.estimates import Estimate
from aligner_jax.studies.curve import REFERENCE, SHARE, Reached, counted, numbers_for
from aligner_jax.studies.rates import best_rate
from aligner_jax.studies.study import Plan, Study
from aligner_jax.studies.table_text import markdown

NOTE = """\
Intervals are 95 % over prompts (`evals/interval.py`). A run ends when its held-out loss is within the tolerance of its
extrapolated end ("converged"), or when its budget of steps is used. The rate of an arm is the best on the family's
first task, of a grid that is extended until worse rates are on both sides; "edge" marks an arm whose grid ended before.
"""


def about(study: Study, plan: Plan) -> str:
    """Returns the settings of all runs, and the devices that they ran on."""
    devices = sorted({result.device for result in study.results.values()})
    rule, rows = plan.rule, plan.rows
    return (
        f"{study.base_name}, at most {rule.budget} steps of {rows.rows} × {rows.length} tokens, tolerance "
        f"{rule.tolerance:.1%} of the loss, {plan.seeds} seed{'s' if plan.seeds > 1 else ''}; "
        f"{len(study.results)} runs on {'; '.join(devices) or 'nothing yet'}\n"
    )


def family_table(family: str, base: Estimate | None, arms: Sequence[Reached]) -> str:
    """Returns the table of a family's arms."""
    rows = [["base", "0", percent(base), "", "", "", ""]]
    for each in arms:
        rows.append(
            [
                each.arm, f"{each.parameters:,}", percent(each.success), f"{each.gain:+.3f}",
                "" if math.isnan(each.gain_share) else f"{each.gain_share:.0%}",
                f"{each.rate:g}{'' if each.inside else ' (edge)'}",
                f"{each.converged} of {each.runs} converged, {each.steps:.0f} steps"
                + ("" if each.is_whole else "; more to come"),
            ]
        )  # fmt: skip
    header = [
        "arm", "trained numbers", "success", "held-out loss below the base, nats a token", f"of {REFERENCE}'s", "rate",
        "runs",
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
    header = ["arm", "trained numbers", "loss below the base, nats a token", f"of {REFERENCE}'s"]
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
    """Returns the table of the trained numbers with which Aligners reach 90 % of the reference's success."""
    kinds = counted(each for arms in families.values() for each in arms)
    rows = []
    for family, arms in families.items():
        whole = next((each.success for each in arms if each.arm == REFERENCE and each.is_whole), None)
        found = [numbers_for(SHARE, arms, kind) for kind in kinds]
        if whole is not None:
            rows.append([family, percent(whole), *("not reached" if n is None else f"{n:,.0f}" for n in found)])
    if not rows:
        return ""
    header = ["family", f"success of {REFERENCE}", *(f"numbers of {kind} for {SHARE:.0%} of it" for kind in kinds)]
    return f"## How many numbers it takes\n\n{markdown(header, rows)}"


def percent(share: Estimate | None) -> str:
    """Returns a share and its interval as text; "" for None."""
    return "" if share is None else f"{share.value:.0%} [{share.low:.0%}, {share.high:.0%}]"

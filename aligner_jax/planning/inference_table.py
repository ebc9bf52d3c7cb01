"""Tables of evaluation plans, and advice for evaluations that do not fit or wait for the network."""

from collections.abc import Sequence

from aligner_jax.planning.inference_plan import EvaluationPlan
from aligner_jax.planning.table import collectives, columns, mesh, size, title
from aligner_jax.runtime.tables import Table


def table(plans: Sequence[EvaluationPlan]) -> Table:
    """Returns a table with one column per plan and one row per figure. Memory and traffic are per device."""
    return columns(list(map(title, plans)), [dict(_rows(plan)) for plan in plans])


def _rows(plan: EvaluationPlan) -> list[tuple[str, str]]:
    rows = [
        ("mesh", mesh(plan.mesh)),
        ("rows × tokens + new ones", f"{plan.rows} × {plan.tokens} + {plan.new_tokens}"),
        ("padded to, slots a row", f"{plan.padded_tokens:,}, {plan.slots:,}"),
        ("adapter", _adapter(plan)),
        ("weights", f"{size(plan.weights_bytes)} ({plan.weight_dtype})"),
        ("cache", "–" if plan.cache_bytes is None else size(plan.cache_bytes)),
        ("memory", f"{size(plan.hbm_bytes)}, {'fits' if plan.fits else 'DOES NOT FIT'}"),
    ]
    for program in plan.programs:
        rows.append((f"{program.name}: peak", size(program.peak_bytes)))
        rows.append((f"{program.name}: collectives", collectives(program.collective_bytes)))
    least = "–" if plan.roofline_seconds is None else f"{plan.roofline_seconds * 1e3:,.1f} ms, bound by {plan.bound}"
    rows.append(("a new token of each row, at least", least))
    rows.append(("compiled in", f"{sum(program.compile_seconds for program in plan.programs):.0f} s"))
    return rows


def _adapter(plan: EvaluationPlan) -> str:
    named = plan.adapter.partition("(")[0] + ("" if plan.adapter_path else ", as none is named")
    return f"{named}: {plan.adapter_params:,} parameters"


def advice(plan: EvaluationPlan) -> str | None:
    """Returns one sentence that names the settings to change.

    None if all programs fit and decoding does not wait for weights from other devices.
    """
    too_large = next((program for program in plan.programs if not program.fits), None)
    if too_large is not None:
        changes = ["a smaller --config.batch_size"]
        if plan.weights_bytes > 0.6 * plan.hbm_bytes:
            if plan.weight_dtype not in ("int8", "int4"):
                changes.append("--config.base.quantization=int8 (or int4)")
            changes.append("more devices (--topology)")
        return (
            f"{title(plan)}: the program of {too_large.name} needs {size(too_large.peak_bytes)} a device, and the chip "
            f"has {size(plan.hbm_bytes)}. What helps: {'; '.join(changes)}."
        )
    if plan.bound == "network" and plan.mesh["fsdp"] > 1:
        return (
            f"{title(plan)}: a new token waits for the network, since every device gathers all weights for it. "
            f"--config.mesh.tensor={plan.mesh['fsdp'] * plan.mesh['tensor']} --config.mesh.fsdp=1 computes with each "
            "device's own part of them, where the heads can be split so."
        )
    return None

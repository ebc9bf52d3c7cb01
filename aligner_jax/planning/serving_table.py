"""Tables of serving plans."""

from collections.abc import Sequence

from aligner_jax.planning.serving_plan import ServingPlan
from aligner_jax.planning.table import columns, mesh, size, title
from aligner_jax.runtime.tables import Table


def table(plans: Sequence[ServingPlan]) -> Table:
    """Returns a table with one column per plan and one row per figure. Memory and traffic are per device."""
    return columns(list(map(title, plans)), [dict(_rows(plan)) for plan in plans])


def _rows(plan: ServingPlan) -> list[tuple[str, str]]:
    rate, moved = plan.tokens_per_second, plan.step_bytes
    step, filled = sum(moved.values()), plan.filled_slots_bytes
    return [
        ("mesh", mesh(plan.mesh)),
        ("different adapters", f"{plan.adapters:,}"),
        ("adapters", plan.adapter.partition("(")[0]),
        ("room of a row", f"{plan.capacity_tokens:,} tokens, rank {plan.capacity_rank:,}"),
        ("tokens + new ones, slots a row", f"{plan.tokens:,} + {plan.new_tokens:,}, {plan.slots:,}"),
        ("weights", f"{size(plan.weights_bytes)} ({plan.weight_dtype})"),
        ("rows at once", f"{plan.rows:,}" if plan.rows else "none fits"),
        *((f"{program.name}: peak", size(program.peak_bytes)) for program in plan.programs),
        ("adapters held", f"{size(plan.places_bytes)} in {plan.places:,} places"),
        ("a step moves", size(step)),
        ("  weights", size(moved["weights"])),
        ("  gathered from other devices", size(moved["gathered"])),
        ("  keys and values", f"{size(moved['keys'])} ({plan.read:,} slots a row, {plan.filled:,} filled)"),
        ("  rows' adapters", f"{size(moved['adapters'])} ({size(plan.row_bytes)} a row)"),
        ("filled slots alone", f"{size(filled)}, {filled / step:.0%} of it"),
        ("all slots", f"{size(plan.all_slots_bytes)}, {plan.all_slots_bytes / step:.0%} of it"),
        (
            "a new token of each row, at least",
            "–" if plan.step_seconds is None else f"{plan.step_seconds * 1e3:,.1f} ms, bound by {plan.bound}",
        ),
        ("tokens/s by the roofline", "–" if rate is None else f"{rate:,.0f}"),
        ("compiled in", f"{sum(program.compile_seconds for program in plan.programs):.0f} s"),
    ]


def advice(plan: ServingPlan) -> str | None:
    """Returns one sentence that names the settings to change; None if a row fits."""
    if plan.rows:
        return None
    peak_bytes = max((program.peak_bytes for program in plan.programs), default=0)
    if plan.adapters > 1 and peak_bytes - plan.places_bytes <= plan.hbm_bytes:
        return (
            f"{title(plan)}: {plan.adapters:,} adapters, {size(plan.places_bytes)} in {plan.places:,} places, leave no "
            "room for a row. What helps: fewer adapters on the devices (--places of the server) or a smaller rank "
            "(--rank, or that of the adapters); fewer --prefix_tokens."
        )
    return (
        f"{title(plan)}: not one row of {plan.slots:,} slots fits beside the weights. What helps: fewer --tokens and "
        "--new_tokens; --config.base.quantization=int8 (or int4); more devices (--topology)."
    )

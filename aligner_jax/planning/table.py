"""A plan in words: a table, and what to change where it does not fit."""

import dataclasses
from collections.abc import Sequence

from rich import box
from rich.table import Table

from aligner_jax.planning.plan import ATTAINED, Plan

_GIB = 2**30


def table(plans: Sequence[Plan]) -> Table:
    """A column for each plan, a row for each figure. Memory and traffic are a device's."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    shown.add_column("")
    for plan in plans:
        shown.add_column(f"{plan.topology}, {plan.devices} device{'s' if plan.devices > 1 else ''}", justify="right")
    rows = [dict(_rows(plan)) for plan in plans]
    for name in rows[0]:
        shown.add_row(name, *(row[name] for row in rows))
    return shown


def _rows(plan: Plan) -> list[tuple[str, str]]:
    sent = plan.collective_bytes
    gathered = "–" if sent is None else ", ".join(f"{kind} {_size(n)}" for kind, n in sorted(sent.items())) or "none"
    return [
        ("mesh", " × ".join(f"{name} {size}" for name, size in plan.mesh.items() if size > 1) or "one device"),
        ("rows × tokens, remat", f"{plan.batch} × {plan.sequence_length}, {plan.remat}"),
        ("weights", f"{_size(plan.weights_bytes)} ({plan.weight_dtype})"),
        ("adapter and optimizer", _size(plan.adapter_bytes)),
        ("temporaries", "–" if plan.temporary_bytes is None else _size(plan.temporary_bytes)),
        ("peak", _size(plan.peak_bytes)),
        ("memory", f"{_size(plan.hbm_bytes)}, {'fits' if plan.fits else 'DOES NOT FIT'}"),
        ("collectives a step", gathered),
        ("FLOPs a step", f"{plan.flops / 1e12:,.1f} T (model {plan.model_flops / 1e12:,.1f} T)"),
        ("memory traffic a step", _size(plan.hbm_traffic_bytes)),
        ("roofline", f"{plan.roofline_seconds * 1e3:,.1f} ms, bound by {plan.bound}"),
        (f"tokens/s at {ATTAINED:.0%} of it", f"{plan.tokens_per_second:,.0f}"),
        ("compiled in", f"{plan.compile_seconds:.0f} s"),
    ]


def advice(plan: Plan) -> str | None:
    """What to change where the step does not fit; None where it does."""
    if plan.fits:
        return None
    changes = []
    if plan.remat != "full":
        changes.append("--config.remat=full recomputes more and keeps less")
    if plan.weights_bytes > 0.6 * plan.hbm_bytes:
        if plan.weight_dtype not in ("int8", "int4"):
            changes.append(
                "--config.base.quantization=int8 (or int4) holds weights in half (or a quarter) of the bytes"
            )
        changes.append("more devices split the weights (--topology, --config.mesh.fsdp)")
    elif plan.batch > plan.devices:
        changes.append(
            "--config.optim.accumulate=2 takes the rows in two parts, or a smaller --config.data.batch_size fewer"
        )
    if plan.sequence_length > 512:
        changes.append("--config.data.sequence_length shortens the rows")
    over = _size(plan.peak_bytes - plan.hbm_bytes)
    return (
        f"{plan.topology} with {plan.devices} devices: the step needs {_size(plan.peak_bytes)} a device, of which "
        f"{_size(plan.weights_bytes)} are weights, and the chip has {_size(plan.hbm_bytes)}: {over} too much. "
        f"What helps: {'; '.join(changes)}."
    )


def as_json(plan: Plan) -> dict[str, object]:
    """The plan's fields by name."""
    return dataclasses.asdict(plan)


def _size(nbytes: float) -> str:
    for unit, size in (("GiB", _GIB), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(nbytes) >= size:
            return f"{nbytes / size:,.2f} {unit}"
    return f"{nbytes:,.0f} B"

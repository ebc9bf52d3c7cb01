"""Tables of plans, and advice for steps that do not fit."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from aligner_jax.planning.plan import ATTAINED, Plan
from aligner_jax.runtime.tables import Table

_GIB = 2**30


class Planned(Protocol):
    """The fields that every kind of plan has."""

    @property
    def topology(self) -> str: ...

    @property
    def devices(self) -> int: ...


def table(plans: Sequence[Plan]) -> Table:
    """Returns a table with one column per plan and one row per figure. Memory and traffic are per device."""
    return columns(list(map(title, plans)), [dict(_rows(plan)) for plan in plans])


def title(plan: Planned) -> str:
    """Returns the column title of a plan: its topology and number of devices."""
    return f"{plan.topology}, {plan.devices} device{'s' if plan.devices > 1 else ''}"


def columns(titles: Sequence[str], figures: Sequence[Mapping[str, str]]) -> Table:
    """Returns a table with one column per title and one row per figure; missing figures are shown as a dash."""
    shown = Table(by_column=True)
    shown.add_column("")
    for each in titles:
        shown.add_column(each, justify="right")
    for name in dict.fromkeys(name for of_one in figures for name in of_one):
        shown.add_row(name, *(of_one.get(name, "–") for of_one in figures))
    return shown


def _rows(plan: Plan) -> list[tuple[str, str]]:
    return [
        ("mesh", mesh(plan.mesh)),
        ("rows × tokens, remat", f"{plan.batch} × {plan.sequence_length}, {plan.remat}"),
        ("weights", f"{size(plan.weights_bytes)} ({plan.weight_dtype})"),
        ("adapter and optimizer", size(plan.adapter_bytes)),
        ("temporaries", "–" if plan.temporary_bytes is None else size(plan.temporary_bytes)),
        ("peak", size(plan.peak_bytes)),
        ("memory", f"{size(plan.hbm_bytes)}, {'fits' if plan.fits else 'DOES NOT FIT'}"),
        ("collectives a step", collectives(plan.collective_bytes)),
        ("FLOPs a step", f"{plan.flops / 1e12:,.1f} T (model {plan.model_flops / 1e12:,.1f} T)"),
        ("memory traffic a step", size(plan.hbm_traffic_bytes)),
        ("roofline", f"{plan.roofline_seconds * 1e3:,.1f} ms, bound by {plan.bound}"),
        (f"tokens/s at {ATTAINED:.0%} of it", f"{plan.tokens_per_second:,.0f}"),
        ("compiled in", f"{plan.compile_seconds:.0f} s"),
    ]


def advice(plan: Plan) -> str | None:
    """Returns one sentence that names the settings to change; None if the step fits."""
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
    over = size(plan.peak_bytes - plan.hbm_bytes)
    return (
        f"{plan.topology} with {plan.devices} devices: the step needs {size(plan.peak_bytes)} a device, of which "
        f"{size(plan.weights_bytes)} are weights, and the chip has {size(plan.hbm_bytes)}: {over} too much. "
        f"What helps: {'; '.join(changes)}."
    )


def collectives(nbytes: Mapping[str, int] | None) -> str:
    """Formats bytes by kind of collective; None (unknown) is a dash."""
    if nbytes is None:
        return "–"
    return ", ".join(f"{kind} {size(number)}" for kind, number in sorted(nbytes.items())) or "none"


def mesh(sizes: Mapping[str, int]) -> str:
    """Formats the mesh axes that are larger than 1."""
    return " × ".join(f"{name} {number}" for name, number in sizes.items() if number > 1) or "one device"


def size(nbytes: float) -> str:
    """Formats a number of bytes with a binary unit."""
    for unit, number in (("GiB", _GIB), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(nbytes) >= number:
            return f"{nbytes / number:,.2f} {unit}"
    return f"{nbytes:,.0f} B"

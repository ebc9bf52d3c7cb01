"""Plans the training step of each model on each chip, from one chip to 256: the planner's table in docs/tpu.md.

    python -m scripts.bench.plan_scales [--models=…] [--chips=v5e,v5p,v6e] [--devices=1,8,32] [--rows=8] [--out=FILE]

Every device has the same number of rows of 512 tokens, so the batch grows with the devices. Every step recomputes as
little as fits (remat "auto"); the last column compares its roofline with that of full rematerialization. Where weights
in bfloat16 do not fit, int8 and then int4 are planned too. No TPU is needed; a plan takes one to six compilations of
about 40 seconds. Finished plans are kept in FILE, one JSON object per line, and the same command continues after them.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aligner_jax import compile as planner
from aligner_jax.errors import InputError
from aligner_jax.model.llama import abstract_params
from aligner_jax.model.remat import AUTO
from aligner_jax.planning.plan import make_plan, refitted
from aligner_jax.planning.topology import topology_devices
from aligner_jax.runtime import platform
from aligner_jax.runtime.command import load_config
from aligner_jax.runtime.config import parse_config
from aligner_jax.runtime.files import write_atomically
from aligner_jax.runtime.sharding import mesh_of
from aligner_jax.studies.flag_values import names
from aligner_jax.tasks.cost import step_cost
from aligner_jax.tasks.program import quantization_of

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
MODELS = {"7b": "llama7b_alpaca", "13b": "llama13b_alpaca", "70b": "llama70b_alpaca"}
FLAT = {1: "2x2", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
CUBES = {1: "2x2x1", 4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8"}
CHIPS = {"v5e": FLAT, "v5p": CUBES, "v6e": FLAT}
HELD = ("none", "int8", "int4")
_GIB = 2**30


def main() -> None:
    args = arguments()
    platform.prepare()
    kept = _kept(args.out)
    try:
        plans = list(make_plans(args, kept))
    except InputError as error:
        sys.exit(f"error: {error}")
    print("\n".join(table(plans)))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--models", type=names(tuple(MODELS)), default=list(MODELS), help="some of 7b,13b,70b (default all)")
    add("--chips", type=names(tuple(CHIPS)), default=list(CHIPS), help="some of v5e,v5p,v6e (default all)")
    add("--devices", type=names(tuple(map(str, FLAT))), default="1,8,32,256", help="how many (default %(default)s)")
    add("--rows", type=int, default=8, help="of 512 tokens, a device (default %(default)s)")
    add("--out", type=Path, default=Path("runs/plan_scales.jsonl"), help="where plans are kept (default %(default)s)")
    return parser.parse_args()


def make_plans(args: argparse.Namespace, kept: dict[tuple, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Returns plans as dicts with their model, in order. Plans that are not kept yet are made and kept."""
    for model in args.models:
        for chip in args.chips:
            for count in map(int, args.devices):
                for held in HELD:
                    key = model, f"{chip}:{CHIPS[chip][count]}", count, args.rows * count, held, AUTO
                    if key not in kept:
                        kept[key] = _plan(*key)
                        lines = (json.dumps({"key": key, "plan": plan}) for key, plan in kept.items())
                        write_atomically(args.out, "".join(f"{line}\n" for line in lines))
                        print(f"{' '.join(map(str, key))}: {_memory(kept[key])}", file=sys.stderr, flush=True)
                    yield {"model": model, **kept[key]}
                    if kept[key]["fits"]:
                        break


def _plan(name: str, topology: str, count: int, rows: int, held: str, remat: str) -> dict[str, Any]:
    """Returns a plan as a dict, with the FLOPs of full rematerialization beside it."""
    overrides = [("data.batch_size", str(rows)), ("base.quantization", held), ("remat", remat)]
    config = parse_config(load_config(CONFIGS / f"{MODELS[name]}.py", overrides))
    devices, model = topology_devices(topology, count), planner.planned_model(config.base)
    plan = make_plan(config, model, topology, devices)
    mesh = mesh_of(refitted(config.mesh, count), devices)
    params = abstract_params(model, quantization=quantization_of(config.base))
    full = step_cost(dataclasses.replace(config, remat="full"), model, mesh, params)
    return {**dataclasses.asdict(plan), "full_flops": full.hardware_flops / mesh.shape["tensor"]}


def _kept(path: Path) -> dict[tuple, dict[str, Any]]:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.read_text().splitlines() if path.exists() else []
    return {tuple(each["key"]): each["plan"] for each in map(json.loads, lines)}


def table(plans: list[dict[str, Any]]) -> list[str]:
    """Returns the lines of a Markdown table."""
    headings = (
        "model", "topology", "devices", "weights", "remat", "peak, GiB a device", "roofline, ms", "bound by",
        "tokens/s", "over full",
    )  # fmt: skip
    lines = [f"| {' | '.join(headings)} |", "|---|---|---:|---|---|---:|---:|---|---:|---:|"]
    for plan in plans:
        cells = [plan["model"].upper(), plan["topology"], f"{plan['devices']}", plan["weight_dtype"], plan["remat"]]
        cells.append(_memory(plan))
        if plan["fits"]:
            cells += [f"{plan['roofline_seconds'] * 1e3:,.0f}", plan["bound"], f"{plan['tokens_per_second']:,.0f}"]
            # A step that is bound by memory or network may gain less than its FLOPs say.
            gain = plan["full_flops"] / plan["flops"] - 1
            cells.append(f"+{gain:.0%}" if plan["bound"] == "compute" else "–")
        else:
            cells += ["", "", "", ""]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _memory(plan: dict[str, Any]) -> str:
    of = f"{plan['peak_bytes'] / _GIB:.2f} of {plan['hbm_bytes'] / _GIB:.2f}"
    return of if plan["fits"] else f"{of}: too much"


if __name__ == "__main__":
    main()

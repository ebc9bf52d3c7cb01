"""Cells of compare_methods.py and reproduce_small.py: the arms, what each trains, and about how long that takes."""

import dataclasses
from pathlib import Path
from typing import Any

from aligner_jax.runtime.config import as_dict, parse_config
from aligner_jax.studies.cell_runs import Settings
from aligner_jax.studies.splits import Split


@dataclasses.dataclass(frozen=True)
class Arm:
    """A method with its options, its learning rates, and how its step compares with an Aligner's in time."""

    method: str
    options: dict[str, Any]
    sft: float
    dpo: float
    cost: float = 1.0


ARMS = {
    "aligner_1": Arm("aligner", {"num_tokens": 1}, sft=7e-3, dpo=2e-3),
    "aligner_10": Arm("aligner", {"num_tokens": 10}, sft=2e-3, dpo=2e-3),
    "aligner_100": Arm("aligner", {"num_tokens": 100}, sft=2e-3, dpo=1e-3, cost=1.2),
    "aligner_300": Arm("aligner", {"num_tokens": 300}, sft=2e-3, dpo=1e-3, cost=1.5),
    "llama_adapter_10": Arm("llama_adapter", {"num_tokens": 10}, sft=2e-3, dpo=2e-3),
    "lora_8": Arm("lora", {"rank": 8}, sft=6e-3, dpo=1e-3, cost=1.2),
    "prompt_20": Arm("prompt", {"num_tokens": 20}, sft=3e-2, dpo=2e-3, cost=1.2),
    "prefix_10": Arm("prefix", {"num_tokens": 10}, sft=0.2, dpo=1e-3),
    "bias_o": Arm("bias", {"target": "o"}, sft=1.5e-2, dpo=1e-3),
    "full": Arm("full", {}, sft=1.5e-4, dpo=1e-5, cost=4.0),
}
"""The supervised rates are the best of three to four by --tune, on examples of their own; see docs/comparison.md. They
are for tens of steps of a few rows; the methods' own papers have smaller ones for thousands. Untried are the DPO rates
of the arms that learn no preferences by default, and all of aligner_100 and aligner_300, whose supervised rates
reproduce_small.py finds for itself. What "full" costs is to cover its checkpoints, which are gigabytes.
"""
COMPARED = tuple(name for name in ARMS if name not in ("aligner_100", "aligner_300"))
"""The arms of compare_methods.py unless others are asked for."""
TASKS = ("alpaca", "gsm8k", "pku")
TRAIN_RATE, EVAL_RATE, START_SECONDS = 420.0, 1000.0, 12.0
"""Tokens a second of a 135M model in bfloat16 on two cores, and what a process needs to load and compile."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What all cells have in common."""

    base: str
    dtype: str
    rows: int
    length: int
    steps: int
    stage1_steps: int = 0
    dpo_steps: int = 0


@dataclasses.dataclass(frozen=True)
class Cell:
    """One task learned by one arm from one seed; `rate_scale` multiplies the last run's learning rate."""

    task: str
    arm: str
    seed: int
    rate_scale: float = 1.0

    @property
    def name(self) -> str:
        scale = "" if self.rate_scale == 1 else f"-x{self.rate_scale:.3g}"
        return f"{self.task}-{self.arm}-{self.seed}{scale}"

    def __str__(self) -> str:
        scale = "" if self.rate_scale == 1 else f", rate × {self.rate_scale:.3g}"
        return f"{self.task}, {self.arm}, seed {self.seed}{scale}"


def configs(cell: Cell, sizes: Sizes, split: Split, runs: Path) -> Settings:
    """The config of each of the cell's runs, by its name, in order.

    Preferences take two: supervised on the preferred answers, and from that adapter, which is the reference, on pairs.

    Raises:
      InputError: the sizes are such that no run can have them.
    """
    arm = ARMS[cell.arm]
    if cell.task != "pku":
        return {"sft": run_config(cell, sizes, split, rate=arm.sft * cell.rate_scale, steps=sizes.steps)}
    stage1 = run_config(cell, sizes, split, rate=arm.sft, steps=sizes.stage1_steps, data={"heldout_path": None})
    adapter = runs / cell.name / "sft" / "adapter.safetensors"
    stage2 = run_config(
        cell, sizes, split, rate=arm.dpo * cell.rate_scale, steps=sizes.dpo_steps,
        adapter={"init_from": str(adapter)},
        objective={"name": "dpo", "reference": "initial", "cache_reference": False},
    )  # fmt: skip
    return {"sft": stage1, "dpo": stage2}


def run_config(
    cell: Cell, sizes: Sizes, split: Split, *, rate: float, steps: int, **sections: dict[str, Any]
) -> dict[str, Any]:
    """The config of one run of the cell's arm on its task's rows; `sections` add to those of the same name.

    Raises:
      InputError: the sizes are such that no run can have them.
    """
    arm = ARMS[cell.arm]
    made = {
        "base": {"path": sizes.base, "dtype": sizes.dtype},
        "adapter": {"method": arm.method, **arm.options},
        "data": {
            "path": str(split.train.path), "heldout_path": str(split.heldout.path), "template": "chat", "system": "",
            "sequence_length": sizes.length, "batch_size": sizes.rows, "overlong": "drop",
            "format": "pku_saferlhf" if cell.task == "pku" else "alpaca",
        },
        "optim": {"lr": rate, "weight_decay": 0.02, "schedule": "cosine"},
        "steps": steps,
        "seed": cell.seed,
        "remat": "dots",
        "log_every": max(1, steps // 8),
        "checkpoint": {"every": max(1, steps // 2), "keep": 1},
    }  # fmt: skip
    for name, section in sections.items():
        made[name] = {**made.get(name, {}), **section}
    return as_dict(parse_config(made))


def seconds(cell: Cell, sizes: Sizes, split: Split) -> float:
    """About how long the cell takes on the machine that `TRAIN_RATE` is of."""
    cost, step = ARMS[cell.arm].cost, sizes.rows * sizes.length / TRAIN_RATE
    # Each twice: for the base or the reference, and for the trained adapter.
    heldout = split.heldout.tokens / EVAL_RATE
    if cell.task != "pku":
        return START_SECONDS + cost * sizes.steps * step + 2 * heldout
    # The reference's forward pass is about a third of a step; whole pairs fill rows less well than documents.
    return 2 * START_SECONDS + cost * step * (sizes.stage1_steps + 4 / 3 * sizes.dpo_steps) + 2 * 1.2 * heldout

"""Cells of compare_methods.py and reproduce_small.py: their arms, the configs of their runs, and expected seconds."""

import dataclasses
from pathlib import Path
from typing import Any

from aligner_jax.runtime.config import as_dict, parse_config
from aligner_jax.studies.cell_runs import Settings
from aligner_jax.studies.splits import Split


@dataclasses.dataclass(frozen=True)
class Arm:
    """A method with its options.

    Attributes:
      sft: learning rate of supervised training.
      dpo: learning rate of DPO.
      cost: time of a step, relative to an Aligner's.
    """

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
"""Arms by name.

The supervised rates are the best of three or four that --tune tried on separate examples; see docs/comparison.md. They
suit tens of steps of a few rows; the methods' papers use smaller rates for thousands of steps. Not tuned are the DPO
rates of arms that do not learn preferences by default, and all rates of aligner_100 and aligner_300, whose supervised
rates reproduce_small.py tunes itself. The cost of "full" includes writing its checkpoints, which are gigabytes.
"""
COMPARED = tuple(name for name in ARMS if name not in ("aligner_100", "aligner_300"))
"""Default arms of compare_methods.py."""
TASKS = ("alpaca", "gsm8k", "pku")
TRAIN_RATE, EVAL_RATE, START_SECONDS = 420.0, 1000.0, 12.0
"""Tokens per second of a 135M model in bfloat16 on two cores, and seconds that a process needs to load and compile."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Settings that all cells share: base, dtype, rows per step, tokens per row, and steps."""

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
    """Returns the configs of the cell's runs by name, in the order in which they run.

    The task "pku" has two runs: supervised training on the preferred answers, then DPO on the pairs, which starts from
    that adapter and has it as reference.

    Raises:
      InputError: the sizes are not valid in a config.
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
    """Returns the config of one run of the cell. Fields in `sections` override those of the sections so named.

    Raises:
      InputError: the sizes are not valid in a config.
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
    """Returns the expected seconds of a cell on the machine of `TRAIN_RATE`."""
    cost, step = ARMS[cell.arm].cost, sizes.rows * sizes.length / TRAIN_RATE
    # Held-out tokens are scored twice: with the base or the reference, and with the trained adapter.
    heldout = split.heldout.tokens / EVAL_RATE
    if cell.task != "pku":
        return START_SECONDS + cost * sizes.steps * step + 2 * heldout
    # The reference's forward pass is about a third of a step; whole pairs fill rows less well than documents.
    return 2 * START_SECONDS + cost * step * (sizes.stage1_steps + 4 / 3 * sizes.dpo_steps) + 2 * 1.2 * heldout

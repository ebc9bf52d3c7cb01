"""Cells of compare_methods.py: what each trains, the runs it is made of, its result and what becomes of it."""

import contextlib
import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from compare_data import Split

from aligner_jax.errors import InputError
from aligner_jax.runtime.config import as_dict, parse_config
from aligner_jax.runtime.files import write_atomically
from aligner_jax.runtime.same_run import differences

SCRIPTS = Path(__file__).resolve().parent


@dataclasses.dataclass(frozen=True)
class Arm:
    """A method with its options, its learning rates, and how its step compares with an Aligner's in time."""

    method: str
    options: dict[str, Any]
    sft: float
    dpo: float
    cost: float = 1.0


ARMS = {
    "aligner_1": Arm("aligner", {"num_tokens": 1}, sft=7e-3, dpo=1e-3),
    "aligner_10": Arm("aligner", {"num_tokens": 10}, sft=2e-3, dpo=1e-3),
    "llama_adapter_10": Arm("llama_adapter", {"num_tokens": 10}, sft=2e-3, dpo=1e-3),
    "lora_8": Arm("lora", {"rank": 8}, sft=6e-3, dpo=5e-4, cost=1.2),
    "prompt_20": Arm("prompt", {"num_tokens": 20}, sft=3e-2, dpo=2e-3, cost=1.2),
    "prefix_10": Arm("prefix", {"num_tokens": 10}, sft=0.2, dpo=1e-3),
    "bias_o": Arm("bias", {"target": "o"}, sft=1.5e-2, dpo=1e-3),
    "full": Arm("full", {}, sft=1.5e-4, dpo=1e-5, cost=4.0),
}
"""The supervised rates are the best of three to four by --tune, on examples of their own; see docs/comparison.md. They
are for tens of steps of a few rows; the methods' own papers have smaller ones for thousands. Untried are the DPO rates
of the arms that learn no preferences by default. What "full" costs is to cover its checkpoints, which are gigabytes.
"""
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
    stage1_steps: int
    dpo_steps: int


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


def configs(cell: Cell, sizes: Sizes, split: Split, runs: Path) -> dict[str, dict[str, Any]]:
    """The config of each of the cell's runs, by its name, in order.

    Preferences take two: supervised on the preferred answers, and from that adapter, which is the reference, on pairs.

    Raises:
      InputError: the sizes are such that no run can have them.
    """
    arm = ARMS[cell.arm]

    def config(rate: float, steps: int, **changed: dict[str, Any]) -> dict[str, Any]:
        data = {
            "path": str(split.train.path), "heldout_path": str(split.heldout.path), "template": "chat", "system": "",
            "sequence_length": sizes.length, "batch_size": sizes.rows, "overlong": "drop",
            "format": "pku_saferlhf" if cell.task == "pku" else "alpaca",
        }  # fmt: skip
        made = {
            "base": {"path": sizes.base, "dtype": sizes.dtype},
            "adapter": {"method": arm.method, **arm.options, **changed.get("adapter", {})},
            "data": {**data, **changed.get("data", {})},
            "objective": changed.get("objective", {}),
            "optim": {"lr": rate, "weight_decay": 0.02, "schedule": "cosine"},
            "steps": steps,
            "seed": cell.seed,
            "remat": "dots",
            "log_every": max(1, steps // 8),
            "checkpoint": {"every": max(1, steps // 2), "keep": 1},
        }
        return as_dict(parse_config(made))

    if cell.task != "pku":
        return {"sft": config(arm.sft * cell.rate_scale, sizes.steps)}
    stage1 = config(arm.sft, sizes.stage1_steps, data={"heldout_path": None})
    adapter = runs / cell.name / "sft" / "adapter.safetensors"
    stage2 = config(
        arm.dpo * cell.rate_scale, sizes.dpo_steps, adapter={"init_from": str(adapter)},
        objective={"name": "dpo", "reference": "initial", "cache_reference": False},
    )  # fmt: skip
    return {"sft": stage1, "dpo": stage2}


def seconds(cell: Cell, sizes: Sizes, split: Split) -> float:
    """About how long the cell takes on the machine that `TRAIN_RATE` is of."""
    cost, step = ARMS[cell.arm].cost, sizes.rows * sizes.length / TRAIN_RATE
    # Each twice: for the base or the reference, and for the trained adapter.
    heldout = split.heldout.tokens / EVAL_RATE
    if cell.task != "pku":
        return START_SECONDS + cost * sizes.steps * step + 2 * heldout
    # The reference's forward pass is about a third of a step; whole pairs fill rows less well than documents.
    return 2 * START_SECONDS + cost * step * (sizes.stage1_steps + 4 / 3 * sizes.dpo_steps) + 2 * 1.2 * heldout


def finished(cell: Cell, settings: dict[str, dict[str, Any]], out: Path) -> dict[str, Any] | None:
    """The cell's result, or None where it has none yet.

    Raises:
      InputError: it has one from other settings (named), or its file is damaged.
    """
    path = _path(cell, out)
    try:
        found = json.loads(path.read_bytes())
        was, result = dict(found["settings"]), found["result"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be used ({type(error).__name__}): remove it to have it made anew") from error
    if changes := differences(was, settings):
        raise InputError(f"{path} was made with other settings ({changes}): use those, or choose another --out")
    return result


def run(cell: Cell, settings: dict[str, dict[str, Any]], out: Path) -> dict[str, Any]:
    """Trains what the cell lacks, each run in a process of its own, and keeps the result.

    Raises:
      InputError: a run ended with an error; the sentence names its log.
    """
    folder = out / "runs" / cell.name
    for name, config in settings.items():
        workdir = folder / name
        if (workdir / "finished").exists():
            continue
        file = folder / f"{name}.json"
        write_atomically(file, json.dumps(config, indent=2) + "\n")
        began = time.monotonic()
        _train(file, workdir, cell)
        write_atomically(workdir / "finished", f"{time.monotonic() - began:.1f}\n")
    last = list(settings)[-1]
    result = _result(folder / last)
    result["seconds"] = sum(float((folder / name / "finished").read_text()) for name in settings)
    write_atomically(_path(cell, out), json.dumps({"settings": settings, "result": result}, indent=1) + "\n")
    for name in settings:
        shutil.rmtree(folder / name / "checkpoints", ignore_errors=True)
    return result


def _path(cell: Cell, out: Path) -> Path:
    return out / "cells" / f"{cell.name}.json"


def _train(file: Path, workdir: Path, cell: Cell) -> None:
    log = workdir.parent / f"{workdir.name}.log"
    command = [sys.executable, "-m", "aligner_jax.train", f"--config={SCRIPTS / 'compare_config.py'}:{file}"]
    path = os.pathsep.join(filter(None, [str(SCRIPTS.parent), os.environ.get("PYTHONPATH")]))
    with (
        log.open("a", encoding="utf-8") as text,
        _killed_with_us(
            subprocess.Popen(
                [*command, f"--workdir={workdir}"], stdout=text, stderr=text, env={**os.environ, "PYTHONPATH": path}
            )
        ) as process,
    ):
        status = process.wait()
    if status:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        said = lines[-1].removeprefix("error: ") if lines else "it said nothing"
        raise InputError(f"{cell} ended with status {status}: {said} (its log is {log})")


@contextlib.contextmanager
def _killed_with_us(process: subprocess.Popen) -> Iterator[subprocess.Popen]:
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _result(workdir: Path) -> dict[str, Any]:
    """What the tables need of a run."""
    report = json.loads((workdir / "report.json").read_text())
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    rates = [line["tokens_per_second"] for line in lines if "tokens_per_second" in line]
    result = {"parameters": report["num_params"], "file_bytes": report["file_bytes"]}
    # The first window holds the compilation.
    result["tokens_per_second"] = statistics.median(rates[1:] or rates)
    if "accuracy" in report["after"]:
        names = ("pairs", "loss", "accuracy", "accuracy_interval", "margin")
        return result | {name: report["after"][name] for name in names}
    return result | {when: report[key]["heldout_loss"] for when, key in (("base_loss", "before"), ("loss", "after"))}

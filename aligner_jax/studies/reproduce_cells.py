"""Cells of reproduce_small.py: the tuning of an arm's learning rate (one run of several adapters), and runs by seed."""

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import Any

from aligner_jax.errors import InputError
from aligner_jax.studies.cell_runs import Settings
from aligner_jax.studies.cells import ARMS, EVAL_RATE, START_SECONDS, TRAIN_RATE, Cell, Sizes, run_config, seconds
from aligner_jax.studies.reproduce_shares import REFERENCE
from aligner_jax.studies.splits import Split

Results = Mapping["Cell | Tuning", Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Tuning:
    """One arm trained on one task at several learning rates from one seed, with its own held-out examples."""

    task: str
    arm: str
    seed: int = 0

    @property
    def name(self) -> str:
        return f"{self.task}-{self.arm}-rates"

    def __str__(self) -> str:
        return f"{self.task}, {self.arm}, learning rates"


@dataclasses.dataclass(frozen=True)
class Grid:
    """Settings from which all cells are derived.

    Attributes:
      arms: names of arms, by task.
      seeds: number of seeds per arm.
      rates: learning rates that are tried for every arm.
      splits: training and held-out examples, by task.
      tuning: training and held-out examples of the tuning, by task. They exclude the held-out examples of `splits`.
      template: prompt template, "chat" or "alpaca".
    """

    arms: Mapping[str, list[str]]
    seeds: int
    rates: tuple[float, ...]
    sizes: Sizes
    splits: Mapping[str, Split]
    tuning: Mapping[str, Split]
    template: str

    def cells(self) -> list[Cell | Tuning]:
        """Returns all cells in the order in which they run.

        First come the tuning and the first seed of every arm, beginning with the reference, then all second seeds, and
        so on. So an interrupted study has shares of both tasks for the arms that have run.
        """
        arms = {task: sorted(of, key=lambda arm: arm != REFERENCE) for task, of in self.arms.items()}
        rows = itertools.zip_longest(*([(task, arm) for arm in of] for task, of in arms.items()))
        pairs = [pair for row in rows for pair in row if pair is not None]
        first = [cell for task, arm in pairs for cell in (Tuning(task, arm), Cell(task, arm, 0))]
        return [*first, *(Cell(task, arm, seed) for seed in range(1, self.seeds) for task, arm in pairs)]

    def settings(self, cell: Cell | Tuning, results: Results) -> Settings:
        """Returns the config of the cell's run.

        Args:
          cell: cell to run.
          results: results so far; a run with a seed takes its learning rate from the arm's tuning.

        Raises:
          InputError: the arm has not been tuned.
        """
        tuned = isinstance(cell, Tuning)
        split = self.tuning[cell.task] if tuned else self.splits[cell.task]
        of_run = Cell(cell.task, cell.arm, cell.seed)
        rate = self.rates[0] if tuned else best_rate(results, cell.task, cell.arm)
        sections: dict[str, Any] = {"sweep": {"lr": list(self.rates)}} if tuned else {}
        if self.template != "chat":
            sections["data"] = {"template": self.template, "system": None}
        return {"sft": run_config(of_run, self.sizes, split, rate=rate, steps=self.sizes.steps, **sections)}

    def seconds(self, cell: Cell | Tuning) -> float:
        """Returns the expected seconds of a cell on the machine of `TRAIN_RATE`."""
        if isinstance(cell, Cell):
            return seconds(cell, self.sizes, self.splits[cell.task])
        sizes = self.sizes
        one = ARMS[cell.arm].cost * sizes.steps * sizes.rows * sizes.length / TRAIN_RATE
        heldout = self.tuning[cell.task].heldout.tokens / EVAL_RATE
        return START_SECONDS + len(self.rates) * (one + heldout)


def best_rate(results: Results, task: str, arm: str) -> float:
    """Returns the learning rate with the lowest held-out loss in the arm's tuning.

    Raises:
      InputError: the arm has no tuning, or none of its losses is finite.
    """
    result = results.get(Tuning(task, arm))
    if result is None:
        raise InputError(f"{Tuning(task, arm)} has no result, and without it {arm} has no rate for {task}")
    losses = {each["lr"]: each["heldout_loss"] for each in result["sweep"] if math.isfinite(each["heldout_loss"])}
    if not losses:
        raise InputError(f"{Tuning(task, arm)} ended with no finite loss")
    return min(losses, key=losses.__getitem__)


def has_rate(results: Results, task: str, arm: str) -> bool:
    """Returns True if the arm has been tuned and at least one loss is finite."""
    tried = results.get(Tuning(task, arm), {}).get("sweep", [])
    return any(math.isfinite(each["heldout_loss"]) for each in tried)


def line(result: Mapping[str, Any]) -> str:
    """Returns a cell's result in a few words."""
    end = f"{result['tokens_per_second']:,.0f} tokens/s, {result['seconds']:.0f} s"
    if "sweep" in result:
        tried = ", ".join(f"{each['heldout_loss']:.4f} at {each['lr']:g}" for each in result["sweep"])
        return f"held-out loss {tried}; {end}"
    return f"held-out loss {result['loss']:.4f} (base {result['base_loss']:.4f}), {end}"

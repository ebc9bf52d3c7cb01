"""A study: tunes and trains arms on tasks until their runs are over, and keeps what each cell gave."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from aligner_jax.errors import InputError
from aligner_jax.peft import Adapter
from aligner_jax.peft.artifact import load_adapter, save_adapter
from aligner_jax.peft.compact import DTYPES, AdapterDtype, rounded
from aligner_jax.peft.methods import METHODS
from aligner_jax.runtime.config import OptimConfig
from aligner_jax.studies import rates
from aligner_jax.studies.arms import Arm
from aligner_jax.studies.families.task import Task
from aligner_jax.studies.fit import Fitted, Wanted, fit
from aligner_jax.studies.ledger import Ledger
from aligner_jax.studies.prepared import Prepared, Rows
from aligner_jax.studies.results import Cell, Result
from aligner_jax.studies.steps import Steps
from aligner_jax.studies.stopping import Rule
from aligner_jax.weights.base import Base

TOKENS_PER_SECOND = 760.0
"""Training speed of an Aligner on SmolLM2-135M in bfloat16 on two cores with held-out losses, for forecasts."""
PROMPTS_PER_SECOND = 5.0
"""Prompts that it answers."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """Cells of a study, by the arms and tasks that they are made of, and the settings that all share.

    Attributes:
      arms: arms, by name.
      families: names of tasks, by family; rates are searched on the first task of a family.
      seeds: seeds of every arm and task.
      rule, rows, optim: rule by which runs end, shape of batches, and optimizer, of all runs.
    """

    arms: Mapping[str, Arm]
    families: Mapping[str, Sequence[str]]
    seeds: int
    rule: Rule
    rows: Rows
    optim: OptimConfig

    def forecast(self, tasks: Mapping[str, Task], *, rounded: bool = False) -> tuple[int, float]:
        """Returns the number of runs and the minutes that they and their answers take on two CPU cores, at most.

        Args:
          tasks: a task of every family.
          rounded: True if Aligners answer in every dtype.
        """
        steps = self.rule.budget * self.rows.rows * self.rows.length / TOKENS_PER_SECOND
        runs, seconds = 0, 0.0
        for family, names in self.families.items():
            for arm in self.arms.values():
                # A search mostly needs one rate beyond the first three.
                cells = len(names) * self.seeds
                runs += cells + len(rates.first_rates(arm.rate))
                seconds += (cells + len(rates.first_rates(arm.rate))) * steps * arm.cost * tasks[family].cost
                times = len(DTYPES) if rounded and arm.method == "aligner" else 1
                seconds += times * cells * len(tasks[family].prompts) / PROMPTS_PER_SECOND
        return runs, seconds / 60


class Study:
    """Runs the cells of a plan, and gives their results.

    Attributes:
      results: results by cell.
      successes: 1 or 0 per prompt of the task, by cell; only of cells at their arm's best rate. The base's have arm
        "base", seed 0 and rate 0.
      losses: nats and targets per test document, likewise.
    """

    def __init__(
        self,
        plan: Plan,
        base: Base,
        tasks: Mapping[str, Prepared],
        out: Path,
        *,
        together: int = 1,
        until: float = math.inf,
        say: Callable[[str], None] = print,
    ) -> None:
        """Makes a study whose results, if there are any in `out`, are kept.

        Args:
          plan: arms, tasks and sizes.
          base: the base.
          tasks: prepared tasks by name.
          out: folder of the study.
          together: runs that are trained at once.
          until: time (of `time.monotonic`) by which runs should have ended. No run begins that is expected to take
            longer, by the runs before it on this kind of device; the first one shows how long they take.
          say: prints a line.
        """
        self._plan, self._base, self._tasks, self._together = plan, base, tasks, together
        self._runs, self._answers, self._bits = (Ledger(out / name) for name in ("runs", "answers", "bits"))
        self._adapters, self._until, self._say = out / "adapters", until, say
        self._steps: dict[tuple[str, str | None], Steps] = {}
        self._took: list[float] = []
        self._answering: list[float] = []
        self._made = 0
        self._device = f"{jax.devices()[0].device_kind}, jax {jax.__version__}"
        self._began = time.monotonic()
        self.results: dict[Cell, Result] = {}
        self.successes: dict[Cell, list[float]] = {}
        self.losses: dict[Cell, list[tuple[float, int]]] = {}

    @property
    def base_name(self) -> str:
        """Name of the base's architecture, and the dtype in which it computes."""
        config = self._base.config
        return f"a base of {config.num_layers} layers and width {config.d_model} in {self._base.held_as}"

    def run(self, after: Callable[[str], object] = lambda _: None) -> bool:
        """Runs all cells, family by family, and returns True if all ran.

        Args:
          after: called with a family's name when an arm of it has new results.
        """
        complete = True
        for family, tasks in self._plan.families.items():
            for name in tasks:
                complete &= self._measure(Cell(name, "base", 0, 0.0))
            for arm in self._plan.arms.values():
                made = self._made
                if not self._search(arm, tasks[0]):
                    complete = False
                    continue
                rate = self.rate(arm.name, tasks[0])
                if rate is None:
                    # All rates diverged.
                    continue
                cells = [Cell(task, arm.name, seed, rate) for seed in range(self._plan.seeds) for task in tasks]
                complete &= self._train(arm, cells, with_adapters=True)
                for cell in cells:
                    complete &= cell in self.results and self._measure(cell)
                if self._made > made:
                    after(family)
        return complete

    def is_whole(self, arm: str, tasks: Sequence[str]) -> bool:
        """Returns True if all of an arm's cells in a family are measured at its best rate."""
        rate = self.rate(arm, tasks[0])
        cells = [Cell(task, arm, seed, rate or 0.0) for seed in range(self._plan.seeds) for task in tasks]
        return all(cell in self.successes for cell in cells)

    def questions(self, task: str) -> Sequence[str]:
        """Returns the questions of a task's prompts, in the order of `successes`."""
        return self._tasks[task].questions

    def tried(self, arm: str, task: str) -> dict[float, float]:
        """Returns the losses of an arm's first seed on a task, by rate."""
        return {
            cell.rate: result.loss
            for cell, result in self.results.items()
            if (cell.arm, cell.task, cell.seed) == (arm, task, 0)
        }

    def rate(self, arm: str, task: str) -> float | None:
        """Returns the best rate that an arm has been tried with on a task; None if there is none."""
        return rates.best_rate(self.tried(arm, task))

    def _search(self, arm: Arm, task: str) -> bool:
        """Tries rates until the best is inside; returns True if the search has ended."""
        middle = arm.rate * self._tasks[task].task.rate
        if not self._train(arm, [Cell(task, arm.name, 0, rate) for rate in rates.first_rates(middle)]):
            return False
        while (rate := rates.next_rate(self.tried(arm.name, task))) is not None:
            if not self._train(arm, [Cell(task, arm.name, 0, rate)]):
                return False
        best = self.rate(arm.name, task)
        for rate in self.tried(arm.name, task):
            if rate != best and arm.method == "full":
                # It is as large as the base.
                self._file(Cell(task, arm.name, 0, rate)).unlink(missing_ok=True)
        return True

    def _train(self, arm: Arm, cells: Iterable[Cell], *, with_adapters: bool = False) -> bool:
        """Trains the cells that have no result; returns True if all have one afterwards.

        Args:
          arm: arm of the cells.
          cells: cells of one family.
          with_adapters: True trains cells again whose adapters are needed and missing.
        """
        cells = list(cells)
        wanted: dict[str, Cell] = {}
        cost = self._cost(arm, cells[0].task)
        for cell in cells:
            if not self._can_begin(cell):
                continue
            found = self._runs.get(cell.name, self._settings(cell), Result.FIELDS)
            if found is not None and not (with_adapters and not self._file(cell).exists()):
                self.results[cell] = Result.of(found)
                if self.results[cell].device == self._device:
                    self._took.append(self.results[cell].seconds / cost)
            else:
                wanted[cell.name] = cell
        if wanted:
            runs = [self._wanted(arm, cell) for cell in wanted.values()]
            steps = self._steps_of(arm, self._tasks[cells[0].task])
            for fitted in fit(runs, steps, self._base.params, self._plan.rule, self._may_begin(cost)):
                self._keep(wanted[fitted.wanted.name], fitted, cost)
            steps.release()
        return all(cell in self.results for cell in cells)

    def _wanted(self, arm: Arm, cell: Cell) -> Wanted:
        task, reference = self._tasks[cell.task], self._reference(cell)
        return Wanted(
            name=cell.name, rate=cell.rate, base_loss=task.base_loss, reference=reference,
            first=lambda: arm.init(self._base, cell.seed) if reference is None else reference,
            batches=lambda: task.batches(cell.seed),
            loss_of=functools.partial(task.loss_of, reference=reference),
        )  # fmt: skip

    def _begins_from(self, cell: Cell) -> Cell | None:
        """Returns the cell from whose adapter a cell's run begins; None if it begins from a fresh one."""
        after = self._tasks[cell.task].task.after
        return None if after is None else Cell(after, cell.arm, cell.seed, self.rate(cell.arm, after) or 0.0)

    def _can_begin(self, cell: Cell) -> bool:
        return (before := self._begins_from(cell)) is None or before in self.results

    def _reference(self, cell: Cell) -> Adapter | None:
        before = self._begins_from(cell)
        return before and load_adapter(self._file(before), self._base)

    def _cost(self, arm: Arm, task: str) -> float:
        return arm.cost * self._tasks[task].task.cost

    def _steps_of(self, arm: Arm, task: Prepared) -> Steps:
        kind = arm.name, task.task.after
        if kind not in self._steps:
            together = self._together if METHODS[arm.method].per_row and not task.task.after else 1
            like, optim = arm.init(self._base, 0), dataclasses.replace(self._plan.optim, **arm.optim)
            self._steps[kind] = Steps(like, optim, config=self._base.config, together=together, loss=task.loss)
        return self._steps[kind]

    def _may_begin(self, cost: float) -> Callable[[Wanted], bool]:
        def may_begin(_: Wanted) -> bool:
            expected = cost * max(self._took) if self._took else 0.0
            return time.monotonic() + expected < self._until

        return may_begin

    def _keep(self, cell: Cell, fitted: Fitted, cost: float) -> None:
        course = fitted.course
        assert course.end is not None
        result = Result(
            fitted.adapter.num_params, course.end, tuple(course.points), fitted.kept, fitted.loss,
            fitted.wanted.base_loss, fitted.seconds, self._device,
        )  # fmt: skip
        save_adapter(fitted.adapter, self._file(cell), self._base, canary=False)
        # Answers of an adapter that was trained before are not this one's.
        for ledger, name in ((self._answers, cell.name), *((self._bits, f"{cell.name}-{dtype}") for dtype in DTYPES)):
            ledger.path(name).unlink(missing_ok=True)
        self._runs.put(cell.name, self._settings(cell), result.as_dict())
        self._made += 1
        self.results[cell] = result
        self._took.append(fitted.seconds / cost)
        minutes = (time.monotonic() - self._began) / 60
        self._say(
            f"{minutes:5.1f} min  {cell}: loss {result.loss:.4f} (base {result.base_loss:.4f}), {result.end} after "
            f"{result.points[-1].step} steps, {result.seconds:.0f} s"
        )

    def _measure(self, cell: Cell) -> bool:
        """Measures the answers and test losses of a cell's adapter, or of the base, unless they are known.

        Returns False if there is no time left for it.
        """
        settings = self._answer_settings(cell)
        found = self._answers.get(cell.name, settings, ("right", "test"))
        if found is None and not self._may_answer():
            return False
        if found is None:
            began, adapter = time.monotonic(), None
            if cell.arm != "base":
                adapter = load_adapter(self._file(cell), self._base)
            task, reference = self._tasks[cell.task], self._reference(cell) if adapter else None
            found = {"right": task.successes(adapter, reference), "test": task.test_losses(adapter)}
            self._answers.put(cell.name, settings, found)
            self._made += 1
            self._answering.append(time.monotonic() - began)
            if found["right"]:
                self._say(f"           {cell}: {sum(found['right']):g} of {len(found['right'])} right")
        self.successes[cell] = found["right"]
        self.losses[cell] = [(nats, targets) for nats, targets in found["test"]]
        return True

    def measure_rounded(self, cell: Cell, dtype: AdapterDtype) -> tuple[int, list[float]] | None:
        """Returns the bytes of a measured cell's adapter in a dtype, and its successes; None if there is no time left.

        Args:
          cell: cell at its arm's best rate.
          dtype: dtype of the file.
        """
        settings = {**self._answer_settings(cell), "dtype": dtype}
        name = f"{cell.name}-{dtype}"
        found = self._bits.get(name, settings, ("nbytes", "right"))
        if found is None and not self._may_answer():
            return None
        if found is None:
            adapter, nbytes = rounded(load_adapter(self._file(cell), self._base), dtype)
            right = self.successes[cell]
            if dtype != "float32":
                right = self._tasks[cell.task].successes(adapter, self._reference(cell))
            found = {"nbytes": nbytes, "right": right}
            self._bits.put(name, settings, found)
            self._say(f"           {cell}, {dtype}: {nbytes:,} bytes, {sum(right):g} of {len(right)} right")
        return found["nbytes"], found["right"]

    def _may_answer(self) -> bool:
        return time.monotonic() + max(self._answering, default=0.0) < self._until

    def _file(self, cell: Cell) -> Path:
        return self._adapters / f"{cell.name}.safetensors"

    def _answer_settings(self, cell: Cell) -> dict[str, Any]:
        rows = dataclasses.asdict(self._plan.rows)
        return {**self._settings(cell), "rows": rows, "test": self._tasks[cell.task].test_digest}

    def _settings(self, cell: Cell) -> dict[str, Any]:
        plan = self._plan
        shared = {"base": self._base.identity, "task": {"tokens": self._tasks[cell.task].digest}}
        if cell.arm == "base":
            return shared
        arm = plan.arms[cell.arm]
        if arm.name != cell.arm:
            raise InputError(f"the arm {arm.name!r} is listed as {cell.arm!r}")
        before = self._begins_from(cell)
        if before is not None:
            begins = {"task": before.task, "tokens": self._tasks[before.task].digest, "rate": before.rate}
            shared["begins"] = begins
        return {
            **shared,
            "arm": {"method": arm.method, **arm.options},
            "run": {"rate": cell.rate, "seed": cell.seed},
            "rule": dataclasses.asdict(plan.rule),
            "rows": dataclasses.asdict(plan.rows),
            "optim": {**dataclasses.asdict(plan.optim), **arm.optim},
        }

"""Results of a study's arms in a family, their shares of LoRA's, and the parameters that a share takes."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from aligner_jax.evals.estimates import Estimate, ratio
from aligner_jax.studies.arms import Arm
from aligner_jax.studies.needed import Needed, needed
from aligner_jax.studies.outcomes import Outcomes, share_of_success
from aligner_jax.studies.rates import is_inside
from aligner_jax.studies.results import Cell, Result
from aligner_jax.studies.study import Study

REFERENCE = "lora_8"
"""Arm whose success is the measure of the others."""
SHARE = 0.9
"""Share of the reference's success that counts as reaching it."""


@dataclasses.dataclass(frozen=True)
class Reached:
    """An arm's results in a family.

    Attributes:
      arm, kind: name and kind of the arm.
      parameters: trained parameters.
      is_whole: True if all tasks and seeds are there. Others are compared with no other arm, and have no success.
      rate, inside: best rate on the first task, and True if worse ones were tried on both sides.
      runs, converged: runs at the best rate, and those of them that converged.
      steps: mean number of steps of the runs.
      devices: kinds of devices of the runs.
      outcomes: successes of all tasks and seeds; None if the tasks have no checks.
      success_share: successes relative to the reference's, with their 95 % interval; None without either.
      gain: held-out nats per target token below the base, mean over tasks and seeds.
      gain_share: `gain` relative to the reference's; NaN if the reference has none.
      test_gain: nats per target token below the base on the test examples, with its interval; None without them.
      test_share: that gain relative to the reference's, paired by seed and example, with its interval; None if the
        reference's interval is not above 0.
    """

    arm: str
    kind: str
    parameters: int
    is_whole: bool
    rate: float
    inside: bool
    runs: int
    converged: int
    steps: float
    devices: str
    outcomes: Outcomes | None
    success_share: Estimate | None
    gain: float
    gain_share: float
    test_gain: Estimate | None
    test_share: Estimate | None = None

    @property
    def success(self) -> Estimate | None:
        """Share of prompts that are a success, with its 95 % interval."""
        return None if self.outcomes is None else self.outcomes.success


def reached(study: Study, tasks: Sequence[str], arms: Mapping[str, Arm]) -> list[Reached]:
    """Returns the results of the arms that have some in a family, by number of trained parameters."""
    cells = {arm: _cells(study, tasks, arm) for arm in arms}
    gains = {arm: _gain([study.results[cell] for cell in of]) for arm, of in cells.items() if of}
    whole = {arm for arm in arms if study.is_whole(arm, tasks)}
    tested = {arm: _tested(study, of) for arm, of in cells.items()}
    outcomes = {arm: outcomes_of(study, tasks, cells[arm]) if arm in whole else None for arm in arms}
    found = []
    for arm, of in cells.items():
        if not of:
            continue
        results = [study.results[cell] for cell in of]
        found.append(
            Reached(
                arm=arm,
                kind=arms[arm].kind,
                parameters=results[0].parameters,
                is_whole=arm in whole,
                rate=of[0].rate,
                inside=is_inside(study.tried(arm, tasks[0])),
                runs=len(of),
                converged=sum(result.end == "converged" for result in results),
                steps=float(np.mean([result.points[-1].step for result in results])),
                devices="; ".join(sorted({result.device for result in results})),
                outcomes=outcomes[arm],
                success_share=share_of_success(outcomes[arm], outcomes.get(REFERENCE)),
                gain=gains[arm],
                gain_share=gains[arm] / gains[REFERENCE]
                if {arm, REFERENCE} <= whole and gains[REFERENCE] > 0
                else math.nan,
                test_gain=_gain_of(tested[arm]),
                test_share=share_of(tested[arm], tested.get(REFERENCE)),
            )
        )
    return sorted(found, key=lambda each: each.parameters)


def outcomes_of(study: Study, tasks: Sequence[str], cells: Sequence[Cell]) -> Outcomes | None:
    """Returns the outcomes of cells, which are all tasks of a family for each of their seeds; None without checks."""
    right = {(cell.seed, cell.task): study.successes[cell] for cell in cells}
    return Outcomes.of(right, {task: study.questions(task) for task in tasks})


def base_success(study: Study, tasks: Sequence[str]) -> Estimate | None:
    """Returns the success of the base in a family; None without checks, or until all tasks are measured."""
    cells = [Cell(task, "base", 0, 0.0) for task in tasks]
    known = all(cell in study.successes for cell in cells)
    outcomes = outcomes_of(study, tasks, cells) if known else None
    return None if outcomes is None else outcomes.success


def needed_by_kind(arms: Sequence[Reached], share: float = SHARE) -> dict[str, Needed]:
    """Returns the parameters that a share of the reference's success takes, by kind of Aligners.

    Empty until the reference is whole, or if it has no success.
    """
    reference = next((each.outcomes for each in arms if each.arm == REFERENCE), None)
    if reference is None:
        return {}
    found = {}
    for kind in dict.fromkeys(each.kind for each in arms if each.kind.startswith("aligner")):
        of_kind = [(each.parameters, each.outcomes) for each in arms if each.kind == kind and each.outcomes is not None]
        if of_kind and (number := needed(share, of_kind, reference)) is not None:
            found[kind] = number
    return found


def _cells(study: Study, tasks: Sequence[str], arm: str) -> list[Cell]:
    """Returns the arm's cells at its best rate whose answers are known, by task and seed."""
    rate = study.rate(arm, tasks[0])
    found = [cell for cell in study.successes if cell.arm == arm and cell.task in tasks and cell.rate == rate]
    return sorted(found, key=lambda cell: (tasks.index(cell.task), cell.seed))


def _gain(results: Sequence[Result]) -> float:
    return float(np.mean([result.base_loss - result.loss for result in results]))


@dataclasses.dataclass(frozen=True)
class Gains:
    """Losses on test examples.

    Attributes:
      gains_sn: nats that an example gains over the base, by seed and example.
      targets_sn: target tokens of the examples.
    """

    gains_sn: Float[np.ndarray, "s n"]
    targets_sn: Float[np.ndarray, "s n"]


def share_of(part: Gains | None, whole: Gains | None) -> Estimate | None:
    """Returns the share of the reference's gain that an arm keeps, with its 95 % interval (`estimates.ratio`).

    Gains are paired: a seed's examples with those of the reference with that seed, which had the same rows. None if a
    part is missing, or if the interval of the reference's own gain is not above 0.
    """
    if part is None or whole is None or part.gains_sn.shape != whole.gains_sn.shape:
        return None
    return ratio(part.gains_sn, whole.gains_sn) if ratio(whole.gains_sn, whole.targets_sn).low > 0 else None


def _gain_of(tested: Gains | None) -> Estimate | None:
    return None if tested is None else ratio(tested.gains_sn, tested.targets_sn)


def _tested(study: Study, cells: Sequence[Cell]) -> Gains | None:
    by_seed: dict[int, list[tuple[float, float]]] = {}
    for cell in cells:
        base = study.losses[Cell(cell.task, "base", 0, 0.0)]
        for (nats, targets), (before, _) in zip(study.losses[cell], base, strict=True):
            by_seed.setdefault(cell.seed, []).append((before - nats, targets))
    sizes = {len(each) for each in by_seed.values()}
    if not by_seed or sizes != {max(sizes)} or max(sizes) < 2:
        return None
    gained_sn2 = np.asarray([by_seed[seed] for seed in sorted(by_seed)])
    return Gains(gained_sn2[..., 0], gained_sn2[..., 1])

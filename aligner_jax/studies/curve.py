"""Results of a study's arms in a family, their shares of LoRA's, and the numbers with which a share is reached."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from aligner_jax.evals.estimates import Estimate, ratio
from aligner_jax.evals.interval import grouped_interval
from aligner_jax.studies.arms import Arm
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
      parameters: trained numbers.
      is_whole: True if all tasks and seeds are there. Others are compared with no other arm.
      rate, inside: best rate on the first task, and True if worse ones were tried on both sides.
      runs, converged: runs at the best rate, and those of them that converged.
      steps: mean number of steps of the runs.
      success: share of prompts that are a success, over all tasks and seeds, with its 95 % interval; None if the tasks
        have no checks.
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
    success: Estimate | None
    gain: float
    gain_share: float
    test_gain: Estimate | None
    test_share: Estimate | None = None


def reached(study: Study, tasks: Sequence[str], arms: Mapping[str, Arm]) -> list[Reached]:
    """Returns the results of the arms that have some in a family, by number of trained numbers."""
    cells = {arm: _cells(study, tasks, arm) for arm in arms}
    gains = {arm: _gain([study.results[cell] for cell in of]) for arm, of in cells.items() if of}
    whole = {arm for arm in arms if study.is_whole(arm, tasks)}
    tested = {arm: _tested(study, of) for arm, of in cells.items()}
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
                success=success([study.successes[cell] for cell in of], [cell.task for cell in of]),
                gain=gains[arm],
                gain_share=gains[arm] / gains[REFERENCE]
                if {arm, REFERENCE} <= whole and gains[REFERENCE] > 0
                else math.nan,
                test_gain=_gain_of(tested[arm]),
                test_share=share_of(tested[arm], tested.get(REFERENCE)),
            )
        )
    return sorted(found, key=lambda each: each.parameters)


def base_success(study: Study, tasks: Sequence[str]) -> Estimate | None:
    """Returns the success of the base in a family."""
    cells = [cell for task in tasks if (cell := Cell(task, "base", 0, 0.0)) in study.successes]
    return success([study.successes[cell] for cell in cells], [cell.task for cell in cells])


def success(right: Sequence[Sequence[float]], tasks: Sequence[str]) -> Estimate | None:
    """Returns the share of right answers, with a 95 % interval over prompts.

    Args:
      right: a number from 0 to 1 per prompt, for each run.
      tasks: task of each run. Runs of one task have the same prompts, which count once however many seeds there are.
    """
    value_n = np.asarray([value for run in right for value in run], np.float64)
    if not len(value_n):
        return None
    prompts = [(task, number) for task, run in zip(tasks, right, strict=True) for number in range(len(run))]
    numbers = {prompt: index for index, prompt in enumerate(dict.fromkeys(prompts))}
    low, high = grouped_interval(value_n, np.asarray([numbers[prompt] for prompt in prompts]))
    return Estimate(float(value_n.mean()), low, high)


def counted(arms: Iterable[Reached]) -> list[str]:
    """Returns the kinds of Aligners, whose numbers for a share of the reference's success are interpolated."""
    return list(dict.fromkeys(each.kind for each in arms if each.kind.startswith("aligner")))


def numbers_for(share: float, arms: Sequence[Reached], kind: str) -> float | None:
    """Returns the trained numbers with which a share of the reference's success is reached.

    It is interpolated along the logarithm of the numbers between the first arm that reaches it and the one before. None
    if no arm does, or if the reference has no success.

    Args:
      share: share of the reference's success, from 0 to 1.
      arms: arms, by number of trained numbers.
      kind: kind of the arms that count (`arms.Arm.kind`).
    """
    whole = next((each.success for each in arms if each.arm == REFERENCE and each.is_whole), None)
    if whole is None or whole.value <= 0:
        return None
    target = share * whole.value
    before: Reached | None = None
    for each in (each for each in arms if each.success is not None and each.is_whole and each.kind == kind):
        assert each.success is not None
        if each.success.value >= target:
            if before is None or before.success is None:
                return float(each.parameters)
            part = (target - before.success.value) / (each.success.value - before.success.value)
            low, high = math.log(before.parameters), math.log(each.parameters)
            return math.exp(low + part * (high - low))
        before = each
    return None


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

"""Finds the largest batch that fits a topology, for each remat policy."""

import dataclasses
from collections.abc import Callable, Iterator

from aligner_jax.model.remat import AUTO, POLICIES
from aligner_jax.planning.plan import Plan
from aligner_jax.runtime.config import TrainConfig

MAX_ROWS = 65_536


def search(config: TrainConfig, step: int, plan: Callable[[TrainConfig], Plan]) -> Iterator[Plan]:
    """Yields one plan per remat policy: that of the largest batch that fits, or of the smallest if none fits.

    For a config whose remat is "auto", the plan of its own batch comes first, with the recomputation that "auto" takes.

    Args:
      step: the batch sizes that are tried are multiples of `step`.
      plan: returns the plan of a config.
    """
    if config.remat == AUTO:
        yield plan(config)
    for policy in reversed(POLICIES):
        yield _largest(lambda rows, policy=policy: plan(_with(config, rows, policy)), step)


def _largest(plan: Callable[[int], Plan], step: int) -> Plan:
    best, fitting = plan(step), 1
    if not best.fits:
        return best
    failed: Plan | None = None
    failing = MAX_ROWS // step + 1
    while failing - fitting > 1:
        guess = _guess(best, failed, fitting, failing)
        latest = plan(guess * step)
        if latest.fits:
            best, fitting = latest, guess
        else:
            failed, failing = latest, guess
    return best


def _guess(best: Plan, failed: Plan | None, fitting: int, failing: int) -> int:
    """Returns a batch strictly between the two: memory grows about linearly with rows, and runs out there."""
    room = best.hbm_bytes - best.peak_bytes
    if failed is None:
        growth = max(best.peak_bytes - best.weights_bytes, 1) / fitting
    else:
        growth = max(failed.peak_bytes - best.peak_bytes, 1) / (failing - fitting)
    return min(max(fitting + int(room / growth), fitting + 1), failing - 1)


def _with(config: TrainConfig, rows: int, policy: str) -> TrainConfig:
    data = dataclasses.replace(config.data, batch_size=rows)
    return dataclasses.replace(config, data=data, remat=policy)

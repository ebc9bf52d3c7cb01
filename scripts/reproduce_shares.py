"""The share of LoRA's improvement that another arm keeps, with its interval; part of reproduce_small.py.

Seeds and held-out examples are both a sample: other seeds and other examples would give other numbers. So the variance
of a mean over both is that over the seeds (each seed's mean over all examples) plus that over the examples (each one's
mean over all seeds), which counts what belongs to a seed and an example together twice and errs on the wide side.
Everything is paired: an example's improvement is against the base on that example, and a seed's share is of what LoRA
gains with that seed, which had the same rows in the same order. Intervals are Student's, with as many degrees of
freedom as Satterthwaite gives; of three seeds they are wide, as they should be.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

from aligner_jax.errors import InputError

REFERENCE = "lora_8"
"""The arm whose improvement is shared."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Measured:
    """One arm on the held-out examples.

    Attributes:
      seeds: those it was trained with.
      parameters: trained numbers.
      rate: the learning rate that its tuning chose.
      loss: nats a target token, mean over the seeds.
      gain: by how much that is below the base's.
      share: of the reference's gain; None where that is not above 0 for sure, or has no seed in common.
      shares: the share of each seed.
    """

    arm: str
    seeds: tuple[int, ...]
    parameters: int
    rate: float
    loss: float
    gain: Estimate
    share: Estimate | None
    shares: tuple[float, ...]


def measure(results: Mapping[str, Mapping[int, Mapping[str, Any]]], rates: Mapping[str, float]) -> list[Measured]:
    """Every arm of one task, by its parameters.

    Args:
      results: of each arm and seed, on the same held-out documents: parameters, and base_documents and documents, which
        are pairs of nats and targets a document.
      rates: each arm's learning rate.
    """
    gains = {arm: {seed: _gain_n(result) for seed, result in by_seed.items()} for arm, by_seed in results.items()}
    reference = gains.get(REFERENCE, {})
    found = []
    for arm, by_seed in results.items():
        seeds = tuple(sorted(by_seed))
        gain_sn = np.stack([gains[arm][seed] for seed in seeds])
        targets_n = np.asarray(by_seed[seeds[0]]["documents"])[:, 1]
        common = [seed for seed in seeds if seed in reference]
        share, shares = None, ()
        if common:
            part_sn, whole_sn = (np.stack([of[seed] for seed in common]) for of in (gains[arm], reference))
            if ratio(whole_sn, np.broadcast_to(targets_n, whole_sn.shape)).low > 0:
                share = ratio(part_sn, whole_sn)
                shares = tuple((part_sn.sum(axis=1) / whole_sn.sum(axis=1)).tolist())
        nats = np.mean([np.asarray(by_seed[seed]["documents"])[:, 0].sum() for seed in seeds])
        found.append(
            Measured(
                arm=arm, seeds=seeds, parameters=by_seed[seeds[0]]["parameters"], rate=rates[arm],
                loss=float(nats / targets_n.sum()), share=share, shares=shares,
                gain=ratio(gain_sn, np.broadcast_to(targets_n, gain_sn.shape)),
            )
        )  # fmt: skip
    return sorted(found, key=lambda each: each.parameters)


def without_share(each: Measured, measured: Sequence[Measured]) -> str:
    """Why an arm has no share, as the end of a sentence."""
    seeds = {seed for one in measured if one.arm == REFERENCE for seed in one.seeds}
    if not seeds & set(each.seeds):
        return f"{REFERENCE} was not trained with its seeds"
    return f"{REFERENCE}'s own improvement is not known to be above 0"


def ratio(part_sn: Float[np.ndarray, "s n"], whole_sn: Float[np.ndarray, "s n"]) -> Estimate:
    """The sum of the one over the sum of the other, over s seeds and n examples, with its 95 % interval.

    Linearized, as a survey's ratio of totals is (Cochran, Sampling Techniques, chapter 6). Of a single seed the
    interval is over the examples alone.

    Raises:
      InputError: fewer than two examples.
    """
    s, n = part_sn.shape
    if n < 2:
        raise InputError(f"held-out examples that are short enough: {n}, and an interval needs 2; raise --heldout")
    value = part_sn.sum() / whole_sn.sum()
    residual_sn, size = part_sn - value * whole_sn, whole_sn.sum() / s
    of_examples = n / (n - 1) * float(np.sum(np.mean(residual_sn, axis=0) ** 2)) / size**2
    of_seeds = float(np.sum(np.sum(residual_sn, axis=1) ** 2)) / (s * (s - 1)) / size**2 if s > 1 else 0.0
    variance = of_examples + of_seeds
    half = 0.0
    if variance > 0:
        freedom = variance**2 / (of_examples**2 / (n - 1) + (of_seeds**2 / (s - 1) if s > 1 else 0.0))
        half = float(stats.t.ppf(0.975, freedom)) * math.sqrt(variance)
    return Estimate(float(value), float(value - half), float(value + half))


def _gain_n(result: Mapping[str, Any]) -> Float[np.ndarray, " n"]:
    """By how many nats each document is better than with the base."""
    base: Sequence[Sequence[float]] = result["base_documents"]
    return np.asarray(base, np.float64)[:, 0] - np.asarray(result["documents"], np.float64)[:, 0]

"""The share of LoRA's improvement that another arm keeps, with its interval; part of reproduce_small.py.

Everything is paired: an example's improvement is against the base on that example, and a seed's share is of what LoRA
gains with that seed, which had the same rows in the same order. estimates.py says how the intervals are made.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from aligner_jax.evals.estimates import Estimate, ratio

REFERENCE = "lora_8"
"""The arm whose improvement is shared."""


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


def _gain_n(result: Mapping[str, Any]) -> Float[np.ndarray, " n"]:
    """By how many nats each document is better than with the base."""
    base: Sequence[Sequence[float]] = result["base_documents"]
    return np.asarray(base, np.float64)[:, 0] - np.asarray(result["documents"], np.float64)[:, 0]

"""Computes the share of LoRA's improvement that another arm keeps, with its interval; part of reproduce_small.py.

All comparisons are paired: an example's gain is relative to the base on the same example, and a seed's share is
relative to LoRA's gain with the same seed, which had the same rows in the same order. evals/estimates.py computes the
intervals.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from aligner_jax.evals.estimates import Estimate, ratio

REFERENCE = "lora_8"
"""Arm whose improvement is the denominator of all shares."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """Results of one arm on the held-out examples.

    Attributes:
      seeds: seeds that the arm was trained with.
      parameters: number of trained parameters.
      rate: learning rate chosen by the tuning.
      loss: nats per target token, averaged over the seeds.
      gain: the base's loss minus `loss`, with its interval.
      share: gain divided by the reference's gain; None if the interval of the reference's gain is not above 0, or if
        the two arms have no seed in common.
      shares: share by seed.
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
    """Measures every arm of one task; returns them sorted by number of parameters.

    Args:
      results: results by arm and seed, all on the same held-out documents. Each has `parameters`, `base_documents` and
        `documents`; the last two are (nats, targets) per document.
      rates: learning rate by arm.
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
    """Returns the reason why an arm has no share, as the end of a sentence."""
    seeds = {seed for one in measured if one.arm == REFERENCE for seed in one.seeds}
    if not seeds & set(each.seeds):
        return f"{REFERENCE} was not trained with its seeds"
    return f"{REFERENCE}'s own improvement is not known to be above 0"


def _gain_n(result: Mapping[str, Any]) -> Float[np.ndarray, " n"]:
    """Returns the nats that a document gains over the base, by document."""
    base: Sequence[Sequence[float]] = result["base_documents"]
    return np.asarray(base, np.float64)[:, 0] - np.asarray(result["documents"], np.float64)[:, 0]

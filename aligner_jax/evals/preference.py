"""Held-out preference metrics: how well a policy prefers chosen to rejected answers, relative to its reference."""

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence

import jax
import numpy as np
from jaxtyping import Int64
from rich.console import Console

from aligner_jax.errors import InputError
from aligner_jax.evals.interval import grouped_interval
from aligner_jax.model.llama import LlamaConfig, Params
from aligner_jax.model.logical import replicated
from aligner_jax.objectives.batch import PairBatch
from aligner_jax.objectives.preference import PreferenceOptions, compare, losses_and_metrics
from aligner_jax.objectives.reference import token_log_probs
from aligner_jax.peft import Adapter
from aligner_jax.runtime.global_batch import replicate
from aligner_jax.runtime.tables import Table

_NUMBER = "number"


@dataclasses.dataclass(frozen=True)
class PreferenceMetrics:
    """Means over held-out pairs; see `objectives.preference.losses_and_metrics`.

    Attributes:
      pairs: number of pairs.
      prompts: number of different prompts.
      loss: loss of the objective per pair.
      accuracy: share of the pairs whose chosen answer has the higher implicit reward; ties count as a half.
      accuracy_interval: 95 % interval of the accuracy, with the prompts as the sample (`interval.grouped_interval`);
        NaN if an accuracy is not finite.
      margin: chosen minus rejected reward.
      chosen_reward, rejected_reward: implicit rewards β (log π − log π_ref).
      kl: estimate of KL(π_ref ‖ π) in nats per answer.
      each: prompt number and accuracy of every pair, in the order of the pairs.
    """

    pairs: int
    prompts: int
    loss: float
    accuracy: float
    accuracy_interval: tuple[float, float]
    margin: float
    chosen_reward: float
    rejected_reward: float
    kl: float
    each: list[tuple[int, float]]

    def as_metrics(self) -> dict[str, float]:
        """Returns the means with names that begin with "heldout_", for a line of metrics."""
        low, high = self.accuracy_interval
        names = ("loss", "accuracy", "margin", "chosen_reward", "rejected_reward", "kl")
        means = {f"heldout_{name}": getattr(self, name) for name in names}
        return {**means, "heldout_accuracy_low": low, "heldout_accuracy_high": high}


def measure(
    params: Params,
    policy: Adapter | None,
    reference: Adapter | None,
    batches: Iterable[PairBatch],
    *,
    prompts_m: Int64[np.ndarray, " m"],
    options: PreferenceOptions,
    config: LlamaConfig,
) -> PreferenceMetrics:
    """Measures a policy on all pairs of the batches. All pairs have the same weight.

    Args:
      params: weights of the base.
      policy: adapter of the policy; None means the base.
      reference: frozen adapter of the reference; None means the base. It is used only if the batches carry no
        log-probabilities of the reference.
      batches: batches of the pairs.
      prompts_m: prompt numbers of the pairs that the batches are made of; see `pairs.prompt_numbers`.
      options: options of the objective, such as β.
      config: config of the base.

    Raises:
      InputError: the batches have no pairs.
    """
    return measure_each(params, [policy], reference, batches, prompts_m=prompts_m, options=options, config=config)[0]


def measure_each(
    params: Params,
    policies: Sequence[Adapter | None],
    reference: Adapter | None,
    batches: Iterable[PairBatch],
    *,
    prompts_m: Int64[np.ndarray, " m"],
    options: PreferenceOptions,
    config: LlamaConfig,
) -> list[PreferenceMetrics]:
    """Measures several policies as `measure` does, and computes the reference only once, even if it is one of them."""
    of_policies: list[list[dict[str, np.ndarray]]] = [[] for _ in policies]
    for batch in batches:
        there_um, given = batch.pairs_um >= 0, batch.reference_bt is not None
        rows = replicate(batch)
        reference_bt = rows.reference_bt if given else token_log_probs(params, reference, rows, config=config)
        for policy, of_batches in zip(policies, of_policies, strict=True):
            same = policy is reference and not given
            policy_bt = reference_bt if same else token_log_probs(params, policy, rows, config=config)
            of_pairs = jax.device_get(_of_pairs(policy_bt, reference_bt, rows, options=options))
            measured = {name: x_um.astype(np.float64)[there_um] for name, x_um in of_pairs.items()}
            of_batches.append({_NUMBER: batch.pairs_um[there_um], **measured})
    return [_mean(of_batches, prompts_m) for of_batches in of_policies]


@functools.partial(jax.jit, static_argnames=("options",))
def _of_pairs(policy_bt, reference_bt, batch, *, options: PreferenceOptions):
    of_pairs = losses_and_metrics(compare(policy_bt, reference_bt, batch), options=options)
    return jax.tree.map(replicated, of_pairs)


def _mean(of_batches: list[dict[str, np.ndarray]], prompts_m: Int64[np.ndarray, " m"]) -> PreferenceMetrics:
    if not sum(len(of_batch[_NUMBER]) for of_batch in of_batches):
        raise InputError("the held-out data have no preference pairs")
    of_pairs = {name: np.concatenate([of_batch[name] for of_batch in of_batches]) for name in of_batches[0]}
    order = np.argsort(of_pairs[_NUMBER])
    prompt_m = prompts_m[of_pairs.pop(_NUMBER)[order]]
    of_pairs = {name: x_m[order] for name, x_m in of_pairs.items()}
    # The rewards of a policy that diverged are not finite, so the accuracy has no interval.
    known = np.isfinite(of_pairs["accuracy"]).all()
    return PreferenceMetrics(
        pairs=len(order),
        prompts=len(np.unique(prompt_m)),
        accuracy_interval=grouped_interval(of_pairs["accuracy"], prompt_m) if known else (math.nan, math.nan),
        each=list(zip(prompt_m.tolist(), of_pairs["accuracy"].tolist(), strict=True)),
        **{name: float(np.mean(x_m)) for name, x_m in of_pairs.items()},
    )


@dataclasses.dataclass(frozen=True)
class PreferenceReport:
    """Results before and after training on the same held-out pairs.

    Attributes:
      before: results of the initial policy.
      after: results of the trained policy.
      num_params: trained parameters of the adapter.
      file_bytes: size of the adapter file.
    """

    before: PreferenceMetrics
    after: PreferenceMetrics
    num_params: int
    file_bytes: int

    def as_dict(self) -> dict:
        """Returns the fields as plain values, for JSON."""
        return dataclasses.asdict(self)


def show(result: PreferenceReport, console: Console) -> None:
    """Prints the results before and after training side by side."""
    table = Table("Before and after, on held-out preferences")
    table.add_column("")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    both = result.before, result.after
    table.add_row("loss (a pair)", *(f"{m.loss:.4f}" for m in both))
    table.add_row("accuracy", *(f"{m.accuracy:.1%}" for m in both))
    table.add_row("its 95 % interval", *("{:.1%} to {:.1%}".format(*m.accuracy_interval) for m in both))
    table.add_row("reward margin", *(f"{m.margin:+.4f}" for m in both))
    table.add_row("chosen, rejected reward", *(f"{m.chosen_reward:+.4f}, {m.rejected_reward:+.4f}" for m in both))
    table.add_row("KL estimate (nats an answer)", *(f"{m.kl:.4f}" for m in both))
    table.add_row("pairs, and their prompts", *(f"{m.pairs:,}, {m.prompts:,}" for m in both))
    table.add_row("trained parameters", "", f"{result.num_params:,}")
    table.add_row("size of the adapter file", "", f"{result.file_bytes:,} bytes")
    console.print(table)

"""Preference objectives: raise the chosen answer's likelihood over the rejected one's, relative to a frozen reference.

Shapes: u unit of a batch and m pair of a unit, as in `data.pair_rows` (m alone for any pairs), and 2 for the chosen and
the rejected answer, in this order.
"""

import abc
import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from aligner_jax.model.llama import LlamaConfig, Params, Remat
from aligner_jax.objectives import sft
from aligner_jax.objectives.batch import PairBatch
from aligner_jax.objectives.loss import Options, Totals
from aligner_jax.peft import Adapter
from aligner_jax.runtime.fields import number


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreferenceOptions(Options, abc.ABC):
    """Fields of `config.objective` that all preference objectives have.

    Attributes:
      beta: coefficient β of the implicit rewards β (log π − log π_ref).
      reference: "initial" for the adapter that training begins with, as in the paper; "base" or None for the base
        without an adapter; or the path of a saved adapter.
      cache_reference: True computes the reference's log-probabilities once, before training, and keeps them in the
        workdir. False computes them in every step.
    """

    beta: float = number(0.1, above=0)
    reference: str | None = "initial"
    cache_reference: bool = True

    @property
    def carried(self) -> tuple[str, ...]:
        return ("reference_bt",) if self.cache_reference else ()

    @property
    def reference_in_steps(self) -> bool:
        return not self.cache_reference and self.reference not in (None, "base")

    @abc.abstractmethod
    def losses(
        self, policy_m2: Float[Array, "*m 2"], reference_m2: Float[Array, "*m 2"], counts_m2: Int[Array, "*m 2"]
    ) -> Float[Array, "*m"]:
        """Returns the loss of each pair; the arguments are fields of `Answers`."""


METRICS = ("chosen_reward", "rejected_reward", "margin", "accuracy", "kl")


class Answers(NamedTuple):
    """Sums over the tokens of both answers of each pair; 0 where a unit has no pair.

    Attributes:
      policy_m2: log-probabilities under the policy, in nats.
      reference_m2: log-probabilities under the reference, in nats.
      counts_m2: number of tokens.
      divergence_m2: estimate of the divergence of the policy from the reference, in nats; see `losses_and_metrics`.
    """

    policy_m2: Float[Array, "*m 2"]
    reference_m2: Float[Array, "*m 2"]
    counts_m2: Int[Array, "*m 2"]
    divergence_m2: Float[Array, "*m 2"]


def losses_and_metrics(answers: Answers, *, options: PreferenceOptions) -> dict[str, Float[Array, "*m"]]:
    """Returns the "loss" and the `METRICS` of each pair; metrics are reported as means over pairs.

    - chosen_reward, rejected_reward: implicit rewards β (log π − log π_ref) of the two answers.
    - margin: chosen_reward − rejected_reward.
    - accuracy: 1 if the margin is positive, 0 if it is negative, and ½ if it is 0, as for a policy that equals its
      reference. If the two hardly differ, rounding decides the sign.
    - kl: estimate of KL(π_ref ‖ π) in nats per answer, the mean of the two answers. It is the sum over an answer's
      tokens of r − 1 − log r, where r = π / π_ref is the ratio of the token's conditional probabilities (Schulman's
      estimator "k3"). It is never negative, and 0 only if policy and reference agree on every token. Its expectation
      is the KL divergence of entire answers if these are samples of the reference. Answers of the data are not, but
      are close for a reference that was fine-tuned on similar data. So the metric shows how far the policy has moved
      on these answers, and does not cover answers that the policy would generate.
    """
    losses_m = options.losses(*answers[:3])
    rewards_m2 = options.beta * (answers.policy_m2 - answers.reference_m2)
    margins_m = rewards_m2[..., 0] - rewards_m2[..., 1]
    return {
        "loss": losses_m,
        "chosen_reward": rewards_m2[..., 0],
        "rejected_reward": rewards_m2[..., 1],
        "margin": margins_m,
        "accuracy": 0.5 * (jnp.sign(margins_m) + 1),
        "kl": jnp.mean(answers.divergence_m2, axis=-1),
    }


def token_log_probs(
    params: Params,
    adapter: Adapter | None,
    batch: PairBatch,
    *,
    config: LlamaConfig,
    remat: Remat = "none",
    dropout_key: Array | None = None,
) -> Float[Array, "b t"]:
    """Returns log-probabilities in nats of the batch's target tokens, at the tokens' own positions; 0 elsewhere."""
    losses_bt, _ = sft.losses(params, adapter, batch, config=config, remat=remat, dropout_key=dropout_key)
    return -jnp.roll(losses_bt, 1, axis=1)


def compare(policy_bt: Float[Array, "b t"], reference_bt: Float[Array, "b t"], batch: PairBatch) -> Answers:
    """Returns the answers of a batch, from the `token_log_probs` of policy and reference."""
    units, most = batch.pairs_um.shape
    segments_ut = jnp.asarray(batch.segment_ids_bt).reshape(units, -1)
    add = jax.vmap(lambda x_t, segments_t: jax.ops.segment_sum(x_t, segments_t, 2 * most + 1))

    def of_documents(x_bt: Array) -> Array:
        # Segment 0 is the padding.
        return add(x_bt.reshape(units, -1), segments_ut)[:, 1:].reshape(units, most, 2)

    ratios_bt = policy_bt - reference_bt
    # The mask is at positions one before their targets, which are in the same document.
    _, mask_bt = sft.targets(batch)
    return Answers(
        of_documents(policy_bt),
        of_documents(reference_bt),
        of_documents(mask_bt.astype(jnp.int32)),
        of_documents(jnp.expm1(ratios_bt) - ratios_bt),
    )


def sums(
    params: Params,
    adapter: Adapter | None,
    reference: Adapter | None,
    batch: PairBatch,
    *,
    options: PreferenceOptions,
    config: LlamaConfig,
    remat: Remat = "none",
    dropout_key: Array | None = None,
) -> tuple[Float[Array, ""], Totals]:
    """Returns the sum of the pairs' losses, the number of pairs, and sums of the `METRICS`.

    The reference's log-probabilities are read from the batch. If the batch has none, they are computed with the
    reference adapter over the same base; a reference of None is the base alone.
    """
    policy_bt = token_log_probs(params, adapter, batch, config=config, remat=remat, dropout_key=dropout_key)
    if batch.reference_bt is not None:
        reference_bt = jnp.asarray(batch.reference_bt)
    else:
        reference_bt = token_log_probs(params, reference, batch, config=config)
    of_pairs = losses_and_metrics(compare(policy_bt, reference_bt, batch), options=options)
    there_um = jnp.asarray(batch.pairs_um) >= 0
    added = {name: jnp.sum(jnp.where(there_um, x_um, 0.0)) for name, x_um in of_pairs.items()}
    return added.pop("loss"), Totals(jnp.sum(there_um), added)

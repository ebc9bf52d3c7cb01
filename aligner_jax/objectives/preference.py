"""Preference objectives: of two answers to one prompt, make the chosen one likelier, as seen from a frozen reference.

Shapes: u unit of a batch and m pair of a unit, as in `data.pair_rows` (m alone: any pairs), and 2 for the chosen and
the rejected answer, in this order.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from aligner_jax.errors import InputError
from aligner_jax.model.llama import LlamaConfig, Params, Remat
from aligner_jax.objectives import sft
from aligner_jax.objectives.batch import PairBatch
from aligner_jax.peft import Adapter
from aligner_jax.runtime.config import ObjectiveConfig


def dpo(
    policy_m2: Float[Array, "*m 2"],
    reference_m2: Float[Array, "*m 2"],
    counts_m2: Int[Array, "*m 2"],
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> Float[Array, "*m"]:
    """Direct preference optimization (arXiv 2305.18290, eq. 7): −log σ(β [(π_c − π_r) − (ref_c − ref_r)]).

    Args:
      policy_m2: log-probabilities of the answers under the policy, summed over their tokens, in nats.
      reference_m2: the same under the reference.
      counts_m2: tokens of the answers; not used.
      beta: how dear it is to move away from the reference.
      label_smoothing: the share ε of pairs that are taken to be labelled the wrong way round ("conservative" DPO):
        (1 − ε) times the loss of the pair, plus ε times that of the pair swapped.

    Returns:
      Losses in nats.
    """
    ratios_m2 = policy_m2 - reference_m2
    logits_m = beta * (ratios_m2[..., 0] - ratios_m2[..., 1])
    right_m, wrong_m = jax.nn.log_sigmoid(logits_m), jax.nn.log_sigmoid(-logits_m)
    return -(1 - label_smoothing) * right_m - label_smoothing * wrong_m


def ipo(
    policy_m2: Float[Array, "*m 2"],
    reference_m2: Float[Array, "*m 2"],
    counts_m2: Int[Array, "*m 2"],
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> Float[Array, "*m"]:
    """Identity preference optimization (arXiv 2310.12036, eq. 17): (h − 1 / 2β)², β being the paper's τ.

    h is the difference between the two answers' log-ratios of policy to reference, each a mean over the answer's
    tokens. The paper's are sums; with means the loss does not grow with the answers' length (TRL does the same, and
    says that the paper's authors confirmed it as what they ran).

    Args: as `dpo`.

    Raises:
      InputError: there is label smoothing, which the objective has not.
    """
    if label_smoothing:
        raise InputError("IPO has no label smoothing")
    ratios_m2 = (policy_m2 - reference_m2) / jnp.maximum(counts_m2, 1)
    return jnp.square(ratios_m2[..., 0] - ratios_m2[..., 1] - 1 / (2 * beta))


LOSSES: dict[str, Callable[..., Float[Array, "*m"]]] = {"dpo": dpo, "ipo": ipo}
"""Objectives by name, of one signature. One that needs no reference may ignore it."""

METRICS = ("chosen_reward", "rejected_reward", "margin", "accuracy", "kl")


class Answers(NamedTuple):
    """What is known of both answers of each pair; 0 where a unit has no pair.

    Attributes:
      policy_m2: log-probabilities under the policy in nats, summed over the answers' tokens.
      reference_m2: the same under the reference.
      counts_m2: the number of those tokens.
      divergence_m2: how far the policy is from the reference, in nats; see `losses_and_metrics`.
    """

    policy_m2: Float[Array, "*m 2"]
    reference_m2: Float[Array, "*m 2"]
    counts_m2: Int[Array, "*m 2"]
    divergence_m2: Float[Array, "*m 2"]


def losses_and_metrics(answers: Answers, *, objective: ObjectiveConfig) -> dict[str, Float[Array, "*m"]]:
    """The "loss" of each pair, and the `METRICS`, of which every one is reported as its mean over pairs.

    - chosen_reward, rejected_reward: the implicit rewards β (log π − log π_ref) of the two answers.
    - margin: the difference between them.
    - accuracy: 1 if it is positive, 0 if it is negative, ½ if it is 0, as for a policy that is its own reference. It
      is rounding that decides while the two hardly differ.
    - kl: an estimate of KL(π_ref ‖ π) in nats an answer, mean of the two answers: the sum over an answer's tokens of
      r − 1 − log r with r = π / π_ref of the token after those before it (Schulman's estimator "k3"). It is never
      negative, and 0 only where they agree on every token. Its expectation is the divergence of whole answers if the
      answers are samples of the reference; those of the data are not, though a reference that was fine-tuned on
      their like is near. So it says how far the policy has moved on these answers, and nothing of its own.
    """
    beta, smoothing = objective.beta, objective.label_smoothing
    losses_m = LOSSES[objective.name](*answers[:3], beta=beta, label_smoothing=smoothing)
    rewards_m2 = beta * (answers.policy_m2 - answers.reference_m2)
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
    """Log-probabilities in nats of the batch's target tokens, each at its own position; 0 elsewhere."""
    losses_bt, _ = sft.losses(params, adapter, batch, config=config, remat=remat, dropout_key=dropout_key)
    return -jnp.roll(losses_bt, 1, axis=1)


def compare(policy_bt: Float[Array, "b t"], reference_bt: Float[Array, "b t"], batch: PairBatch) -> Answers:
    """The answers of a batch, from the `token_log_probs` of policy and reference."""
    units, most = batch.pairs_um.shape
    segments_ut = jnp.asarray(batch.segment_ids_bt).reshape(units, -1)
    add = jax.vmap(lambda x_t, segments_t: jax.ops.segment_sum(x_t, segments_t, 2 * most + 1))

    def of_documents(x_bt: Array) -> Array:
        # Segment 0 is the padding.
        return add(x_bt.reshape(units, -1), segments_ut)[:, 1:].reshape(units, most, 2)

    ratios_bt = policy_bt - reference_bt
    # Those positions come one before their targets, but in the same document.
    _, mask_bt = sft.targets(batch)
    return Answers(
        of_documents(policy_bt),
        of_documents(reference_bt),
        of_documents(mask_bt.astype(jnp.int32)),
        of_documents(jnp.expm1(ratios_bt) - ratios_bt),
    )


def loss_sum(
    params: Params,
    adapter: Adapter | None,
    reference: Adapter | None,
    batch: PairBatch,
    *,
    objective: ObjectiveConfig,
    config: LlamaConfig,
    remat: Remat = "none",
    dropout_key: Array | None = None,
) -> tuple[Float[Array, ""], Int[Array, ""], dict[str, Float[Array, ""]]]:
    """Sum of the pairs' losses, the number of pairs, and sums of the `METRICS`.

    The reference's log-probabilities are those that the batch carries; where it carries none they are computed here,
    with the reference adapter (None: none) over the same base.
    """
    policy_bt = token_log_probs(params, adapter, batch, config=config, remat=remat, dropout_key=dropout_key)
    if batch.reference_bt is not None:
        reference_bt = jnp.asarray(batch.reference_bt)
    else:
        reference_bt = token_log_probs(params, reference, batch, config=config)
    of_pairs = losses_and_metrics(compare(policy_bt, reference_bt, batch), objective=objective)
    there_um = jnp.asarray(batch.pairs_um) >= 0
    sums = {name: jnp.sum(jnp.where(there_um, x_um, 0.0)) for name, x_um in of_pairs.items()}
    return sums.pop("loss"), jnp.sum(there_um), sums

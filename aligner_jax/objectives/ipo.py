"""Identity preference optimization (arXiv 2310.12036)."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from aligner_jax.objectives.preference import PreferenceOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class IPOOptions(PreferenceOptions):
    """Fields of `config.objective` of IPO, whose β is the paper's τ."""

    def losses(
        self, policy_m2: Float[Array, "*m 2"], reference_m2: Float[Array, "*m 2"], counts_m2: Int[Array, "*m 2"]
    ) -> Float[Array, "*m"]:
        """Returns (h − 1 / 2β)² of each pair (eq. 17).

        h is the difference between the two answers' log-ratios of policy to reference, each a mean over the answer's
        tokens. The paper's are sums; with means the loss does not grow with the answers' length (TRL does the same, and
        says that the paper's authors confirmed it as what they ran).

        Args:
          policy_m2: log-probabilities of the answers under the policy, summed over their tokens, in nats.
          reference_m2: the same under the reference.
          counts_m2: tokens of the answers.
        """
        ratios_m2 = (policy_m2 - reference_m2) / jnp.maximum(counts_m2, 1)
        return jnp.square(ratios_m2[..., 0] - ratios_m2[..., 1] - 1 / (2 * self.beta))

"""Identity preference optimization (arXiv 2310.12036)."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from aligner_jax.objectives.preference import PreferenceOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class IPOOptions(PreferenceOptions):
    """Fields of `config.objective` of IPO; β is the paper's τ."""

    def losses(
        self, policy_m2: Float[Array, "*m 2"], reference_m2: Float[Array, "*m 2"], counts_m2: Int[Array, "*m 2"]
    ) -> Float[Array, "*m"]:
        """Returns (h − 1 / 2β)² for each pair (eq. 17).

        h is the difference between the two answers' log-ratios of policy to reference, each a mean over the answer's
        tokens. In the paper they are sums. With means the loss does not grow with the length of the answers; TRL does
        the same, and reports that the paper's authors confirmed it as their implementation.

        Args:
          policy_m2: log-probabilities of the answers under the policy, summed over tokens, in nats.
          reference_m2: log-probabilities of the answers under the reference, summed over tokens, in nats.
          counts_m2: number of tokens of the answers.
        """
        ratios_m2 = (policy_m2 - reference_m2) / jnp.maximum(counts_m2, 1)
        return jnp.square(ratios_m2[..., 0] - ratios_m2[..., 1] - 1 / (2 * self.beta))

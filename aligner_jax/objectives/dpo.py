"""Direct preference optimization (arXiv 2305.18290)."""

import dataclasses

import jax
from jaxtyping import Array, Float, Int

from aligner_jax.objectives.preference import PreferenceOptions
from aligner_jax.runtime.fields import number


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPOOptions(PreferenceOptions):
    """Fields of `config.objective` of DPO.

    Attributes:
      label_smoothing: assumed share ε of pairs with swapped labels ("conservative" DPO). The loss is (1 − ε) times that
        of the pair, plus ε times that of the swapped pair.
    """

    label_smoothing: float = number(0.0, least=0, below=0.5)

    def losses(
        self, policy_m2: Float[Array, "*m 2"], reference_m2: Float[Array, "*m 2"], counts_m2: Int[Array, "*m 2"]
    ) -> Float[Array, "*m"]:
        """Returns −log σ(β [(π_c − π_r) − (ref_c − ref_r)]) for each pair, in nats (eq. 7).

        Args:
          policy_m2: log-probabilities of the answers under the policy, summed over tokens, in nats.
          reference_m2: log-probabilities of the answers under the reference, summed over tokens, in nats.
          counts_m2: number of tokens of the answers; not used.
        """
        ratios_m2 = policy_m2 - reference_m2
        logits_m = self.beta * (ratios_m2[..., 0] - ratios_m2[..., 1])
        right_m, wrong_m = jax.nn.log_sigmoid(logits_m), jax.nn.log_sigmoid(-logits_m)
        return -(1 - self.label_smoothing) * right_m - self.label_smoothing * wrong_m

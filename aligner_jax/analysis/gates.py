"""Gates by layer and head: how much each head lets in of what the adapter adds."""

import dataclasses

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import rankdata

from aligner_jax.peft import Adapter
from aligner_jax.peft.gated import GatedOptions


@dataclasses.dataclass(frozen=True)
class Gates:
    """An adapter's gates, and their mean and spread over the heads of each layer.

    Attributes:
      layers_l: the layers' numbers in the model; of gates that all layers share, the first of them alone.
      gates_ln: as they weigh: after the tanh where the method has one.
      std_l: standard deviation over the heads (n in the denominator, not n - 1).
    """

    layers_l: Int[np.ndarray, " l"]
    gates_ln: Float[np.ndarray, "l n"]
    mean_l: Float[np.ndarray, " l"]
    std_l: Float[np.ndarray, " l"]

    @property
    def trend(self) -> float | None:
        """Spearman's rank correlation of the spread with the depth: 1 where it grows from every layer to the next.

        Layers of one spread share their rank. None where there are fewer than three layers, or all spreads are alike.
        """
        if len(self.layers_l) < 3 or not np.ptp(self.std_l):
            return None
        return float(np.corrcoef(rankdata(self.std_l), self.layers_l)[0, 1])


def gates_of(adapter: Adapter) -> Gates | None:
    """The gates of an adapter whose method has them; None of the others."""
    options = adapter.options
    if not isinstance(options, GatedOptions):
        return None
    gates_ln = options.weights(np.asarray(adapter.trainable["gates_ln"], np.float64))
    layers_l = options.start_layer + np.arange(len(gates_ln))
    return Gates(layers_l, gates_ln, gates_ln.mean(axis=1), gates_ln.std(axis=1))

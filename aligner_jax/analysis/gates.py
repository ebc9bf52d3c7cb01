"""Gates by layer and head, which weigh the adapter's contribution to a head."""

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from aligner_jax.peft import Adapter
from aligner_jax.peft.gated import GatedOptions


@dataclasses.dataclass(frozen=True)
class Gates:
    """An adapter's gates, with mean and standard deviation over the heads, by layer.

    Attributes:
      layers_l: indices of the layers in the model; only the first one if all layers share the gates.
      gates_ln: effective weights, after tanh if the method has it. With a gate for each token, n counts the first
        token's heads, then the next one's.
      mean_l: mean over the heads.
      std_l: standard deviation over the heads (n in the denominator, not n - 1).
      of: the thing that has a gate in every layer, "head" or "token and head".
    """

    layers_l: Int[np.ndarray, " l"]
    gates_ln: Float[np.ndarray, "l n"]
    mean_l: Float[np.ndarray, " l"]
    std_l: Float[np.ndarray, " l"]
    of: str = "head"

    @property
    def trend(self) -> float | None:
        """Spearman's rank correlation of `std_l` with the layer: 1 if it grows from every layer to the next.

        Layers with equal values share a rank. None if there are fewer than three layers, or all values are equal.
        """
        if len(self.layers_l) < 3 or not np.ptp(self.std_l):
            return None
        # Imported here since SciPy's statistics take half a second.
        from scipy.stats import rankdata

        return float(np.corrcoef(rankdata(self.std_l), self.layers_l)[0, 1])


def gates_of(adapter: Adapter) -> Gates | None:
    """Returns the gates of an adapter; None if its method has none."""
    options = adapter.options
    if not isinstance(options, GatedOptions):
        return None
    (name,) = (name for name in adapter.trainable if name.startswith("gates_"))
    gates = options.weights(np.asarray(adapter.trainable[name], np.float64))
    gates_ln = gates.reshape(len(gates), -1)
    layers_l = options.start_layer + np.arange(len(gates_ln))
    of = "token and head" if gates.ndim > 2 else "head"
    return Gates(layers_l, gates_ln, gates_ln.mean(axis=1), gates_ln.std(axis=1), of)

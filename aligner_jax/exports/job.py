"""One export: the base, the adapters to fold, and the choices of how they are written."""

import dataclasses
import functools

from aligner_jax.exports.source import StoredBase
from aligner_jax.peft.adapter import Adapter, LayerOptions
from aligner_jax.peft.fold import Fold, Target, Unfoldable, make_fold
from aligner_jax.weights.leaves import leaf_specs


@dataclasses.dataclass(frozen=True)
class Job:
    """Adapters to export over their base.

    Attributes:
      base: the base.
      adapters: adapters in the order in which they are applied, with their strength.
      target: projection whose bias holds a prefix of one token.
      dtype: dtype of written weights; also "q8_0" and "stored" in a GGUF file, see `export_gguf`.
      base_model: hub name of the base; None if it is unknown.
    """

    base: StoredBase
    adapters: tuple[Adapter, ...]
    target: Target
    dtype: str
    base_model: str | None = None

    @functools.cached_property
    def fold(self) -> Fold:
        """The adapters as changes of the base's leaves. Raises Unfoldable if there are none; see `make_fold`."""
        return make_fold(self.adapters, self.base.config, self.target)

    @property
    def can_be_folded(self) -> bool:
        """True if `fold` does not raise Unfoldable."""
        try:
            self.fold  # noqa: B018
        except Unfoldable:
            return False
        return True

    def changed_layers(self) -> dict[str, range | None]:
        """Returns the layers in which each changed leaf may differ from the base; None for a leaf without layers."""
        config, specs = self.base.config, leaf_specs(self.fold.folded_config)
        firsts: dict[str, int] = {}
        for adapter in self.fold.adapters:
            options = adapter.options
            first = options.adapted(config).start if isinstance(options, LayerOptions) else 0
            for leaf in make_fold([adapter], config, self.target).needs:
                firsts[leaf] = min(first, firsts.get(leaf, first))
        layered = {leaf for leaf, spec in specs.items() if spec.axes[0] == "layers"}
        return {leaf: range(first, config.num_layers) if leaf in layered else None for leaf, first in firsts.items()}

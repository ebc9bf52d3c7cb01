"""A base with adapters folded in, read part by part, so that no leaf is ever whole in memory but a layer's."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from aligner_jax.errors import InputError
from aligner_jax.exports.source import StoredBase
from aligner_jax.peft.fold import Fold
from aligner_jax.weights.assemble import Parts
from aligner_jax.weights.finite import all_finite
from aligner_jax.weights.leaves import DTYPES, leaf_specs


@dataclasses.dataclass(frozen=True)
class FoldedParts:
    """Reads parts of the leaves of a folded base; see `assemble.Parts`.

    A leaf that the adapters do not change is read as the base's files store it, rounded to `dtype`. A changed leaf is
    computed in float32, a layer at a time, and rounded once.

    Attributes:
      fold: the adapters as changes of leaves.
      dtype: dtype of the parts.
      stored: reads the base in `dtype`.
      exact: reads the base in float32.
    """

    fold: Fold
    dtype: str
    stored: Parts
    exact: Parts

    def __call__(self, leaf: str, indexes: Sequence[Sequence[slice]]) -> list[np.ndarray]:
        """Returns the parts of a leaf at the indexes, each a slice of every axis."""
        if leaf not in self.fold.needs:
            if leaf in leaf_specs(self.fold.config):
                return self.stored(leaf, indexes)
            shape = leaf_specs(self.fold.folded_config)[leaf].shape
            return [np.zeros(shape, DTYPES[self.dtype])[tuple(index)] for index in indexes]
        if leaf_specs(self.fold.folded_config)[leaf].axes[0] != "layers":
            whole = self._changed(leaf, None)
            return [whole[tuple(index)] for index in indexes]
        return [self._layers(leaf, index) for index in indexes]

    def _layers(self, leaf: str, index: Sequence[slice]) -> np.ndarray:
        over_layers, *within = index
        layers = range(*over_layers.indices(self.fold.config.num_layers))
        shape = leaf_specs(self.fold.folded_config)[leaf].shape[1:]
        sizes = [len(range(*cut.indices(size))) for cut, size in zip(within, shape, strict=True)]
        part = np.empty((len(layers), *sizes), DTYPES[self.dtype])
        for place, layer in enumerate(layers):
            part[place] = self._changed(leaf, layer)[tuple(within)]
        return part

    def _changed(self, leaf: str, layer: int | None) -> np.ndarray:
        inputs = {}
        for needed in self.fold.needs[leaf]:
            everything = [slice(None)] * len(leaf_specs(self.fold.config)[needed].shape)
            if layer is not None:
                everything[0] = slice(layer, layer + 1)
            read = self.exact(needed, [everything])[0]
            inputs[needed] = read if layer is None else read[0]
        with np.errstate(over="ignore"):
            rounded = self.fold.leaf(leaf, layer, inputs).astype(DTYPES[self.dtype])
        if not all_finite(rounded):
            at = "" if layer is None else f" in layer {layer}"
            raise InputError(f"with the adapter, {leaf}{at} holds numbers that {self.dtype} cannot hold: use float32")
        return rounded


def folded_parts(base: StoredBase, fold: Fold, dtype: str) -> FoldedParts:
    """Returns the parts of a folded base, after all names and shapes of its files are checked.

    Raises:
      InputError: see `assemble.open_parts`.
    """
    return FoldedParts(fold, dtype, base.open_parts(dtype), base.open_parts("float32"))

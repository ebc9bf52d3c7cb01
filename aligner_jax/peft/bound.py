"""An adapter as the model sees it: parts in ranges of layers, and parameters in place of the base's."""

import dataclasses
from collections.abc import Mapping

import flax.struct
from jaxtyping import Array

from aligner_jax.model.layers import Adapted
from aligner_jax.model.llama import Params


@flax.struct.dataclass
class Bound:
    """One or more adapters bound to a base.

    Attributes:
      adapted: prefixes and updates, with the range of layers that each adapts.
      parameters: fields of `Params` (but not of its layers) that take the place of the base's.
      first_position: rotary position of a text's first token.
    """

    adapted: tuple[Adapted, ...] = ()
    parameters: Mapping[str, Array] = dataclasses.field(default_factory=dict)
    first_position: int = flax.struct.field(pytree_node=False, default=0)

    def on(self, params: Params) -> Params:
        """Returns the base with these parameters in place of its own."""
        return dataclasses.replace(params, **self.parameters)

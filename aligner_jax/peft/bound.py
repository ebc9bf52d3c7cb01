"""An adapter as the model sees it: prefixes, updates of weights, parameters in place of the base's."""

import dataclasses
from collections.abc import Mapping

import flax.struct
from jaxtyping import Array

from aligner_jax.model.attention import Prefix
from aligner_jax.model.llama import Params
from aligner_jax.model.updates import Updates


@flax.struct.dataclass
class Bound:
    """What a method's `bind` makes of its trained arrays over a base.

    Attributes:
      prefix, updates: see `llama.forward`; both over the adapted layers, which are the last ones.
      parameters: fields of `Params` (but not of its layers) that take the place of the base's.
      first_position: rotary position of a text's first token.
    """

    prefix: Prefix | None = None
    updates: Updates = dataclasses.field(default_factory=dict)
    parameters: Mapping[str, Array] = dataclasses.field(default_factory=dict)
    first_position: int = flax.struct.field(pytree_node=False, default=0)

    def on(self, params: Params) -> Params:
        """The base with these parameters in place of its own."""
        return dataclasses.replace(params, **self.parameters)

"""Adapters in the form that the model takes: prefixes and updates of layers, and replaced parameters."""

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
      adapted: prefixes and updates, each for a range of layers.
      parameters: replacements for fields of `Params` other than its layers.
      first_position: rotary position of a text's first token.
    """

    adapted: tuple[Adapted, ...] = ()
    parameters: Mapping[str, Array] = dataclasses.field(default_factory=dict)
    first_position: int = flax.struct.field(pytree_node=False, default=0)

    def on(self, params: Params) -> Params:
        """Returns the base with its parameters replaced by these."""
        return dataclasses.replace(params, **self.parameters)

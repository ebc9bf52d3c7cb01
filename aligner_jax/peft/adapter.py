"""What an adapter is: a few trained arrays, the method that gives them meaning, and that method's options."""

import dataclasses
import math
from typing import Any

import flax.struct
import jax
from jaxtyping import Array


@dataclasses.dataclass(frozen=True)
class Options:
    """A method's options as an immutable, hashable mapping, so that an `Adapter` has a static structure."""

    items: tuple[tuple[str, Any], ...]

    @classmethod
    def of(cls, /, **options: Any) -> "Options":
        # JSON has no tuples, and a file may call an option what an argument is called.
        fixed = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
        return cls(tuple(sorted(fixed.items())))

    def as_dict(self) -> dict[str, Any]:
        return dict(self.items)

    def __getitem__(self, name: str) -> Any:
        return self.as_dict()[name]


class Adapter(flax.struct.PyTreeNode):
    """The trained arrays of one method, as a pytree whose only leaves are those arrays.

    Attributes:
      trainable: arrays by name; for "aligner" tokens_pd and gates_ln (l counts adapted layers only), float32.
      method: a key of `aligner_jax.peft.METHODS`.
      options: what `init_adapter` was given, defaults filled in.
    """

    trainable: dict[str, Array]
    method: str = flax.struct.field(pytree_node=False)
    options: Options = flax.struct.field(pytree_node=False)

    @property
    def num_params(self) -> int:
        """How many numbers are trained."""
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(self.trainable))

    def __str__(self) -> str:
        return f"{self.method}({', '.join(f'{name}={value}' for name, value in self.options.items)})"

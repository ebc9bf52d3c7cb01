"""Adapters and the records of their methods: `Adapter`, `Method`, and the typed `Options` that both hold."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
from jaxtyping import Array

from aligner_jax.errors import InputError
from aligner_jax.files.fields import MOST_INTEGER, shown
from aligner_jax.files.identity import identity
from aligner_jax.model.llama import LlamaConfig, Params
from aligner_jax.peft.bound import Bound
from aligner_jax.runtime.fields import number
from aligner_jax.runtime.roofline import AdapterCost


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a method: a frozen dataclass whose fields `runtime.fields.parse_section` reads.

    A field that holds a number is declared by `runtime.fields.number`, which gives its bounds. Instances are hashable,
    so that an `Adapter` has a static structure.
    """

    def check(self, config: LlamaConfig | None) -> None:
        """Raises InputError for options that contradict each other, or the model.

        Args:
          config: of the model; None where an adapter's file is read without its base.
        """

    def as_dict(self) -> dict[str, Any]:
        """Returns the options by name, in the order of their names."""
        return {name: getattr(self, name) for name in sorted(field.name for field in dataclasses.fields(self))}

    def __getitem__(self, name: str) -> Any:
        return self.as_dict()[name]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerOptions(Options):
    """Options of a method that adapts the layers from one on.

    Attributes:
      start_layer: the first adapted layer.
    """

    start_layer: int = number(2, least=0, below=MOST_INTEGER)

    def check(self, config: LlamaConfig | None) -> None:
        """Raises InputError unless start_layer is a layer of the model."""
        if config is not None and self.start_layer >= config.num_layers:
            raise InputError(
                f"start_layer is {shown(self.start_layer)}, but the model has layers 0 to {config.num_layers - 1}"
            )

    def adapted(self, config: LlamaConfig) -> range:
        """Returns the adapted layers."""
        return range(self.start_layer, config.num_layers)

    def num_adapted(self, config: LlamaConfig) -> int:
        """Returns the number of adapted layers."""
        return len(self.adapted(config))


class Adapter(flax.struct.PyTreeNode):
    """The trained arrays of one method, as a pytree whose only leaves are those arrays.

    Attributes:
      trainable: arrays by name; for "aligner" tokens_pd and gates_ln (l counts adapted layers only), float32.
      method: a key of `aligner_jax.peft.METHODS`.
      options: of the method, defaults filled in.
    """

    trainable: dict[str, Array]
    method: str = flax.struct.field(pytree_node=False)
    options: Options = flax.struct.field(pytree_node=False)

    @property
    def num_params(self) -> int:
        """The number of trained parameters."""
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(self.trainable))

    @property
    def identity(self) -> str:
        """Text of method and options for digests: `str` of the adapter without `later` options at their defaults."""
        return _described(self.method, dict(sorted(identity(self.options).items())))

    def __str__(self) -> str:
        return _described(self.method, self.options.as_dict())


def _described(method: str, options: dict[str, Any]) -> str:
    return f"{method}({', '.join(f'{name}={value}' for name, value in options.items())})"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method[O: Options]:
    """One method of fine-tuning; `docs/extending.md` writes one.

    Attributes:
      options: dataclass of the method's options; `options()` are the defaults.
      shapes: (options, config) to the shapes of the trained arrays by name. A name ends in an underscore and one letter
        for each axis (legend in `model/llama.py`).
      init: (options, config, key) to fresh arrays of these shapes, float32.
      bind: (trainable, options, params, config, dropout_key) to what the model takes. The key is one of a training
        step, for methods with dropout; None drops nothing.
      cost: (options, config) to what the method adds to a training step.
      with_strength: (adapter, strength) to the adapter whose effect on every layer is multiplied by the strength, see
        `scaled`; None for a method whose effect is not linear in any of its arrays.
      per_row: True if the rows of a batch can have adapters of their own (`rows.bind_rows`).
      trains_base: True if weights of the base have a gradient, for which they cannot be quantized.
    """

    options: type[O]
    shapes: Callable[[O, LlamaConfig], dict[str, tuple[int, ...]]]
    init: Callable[[O, LlamaConfig, Array], dict[str, Array]]
    bind: Callable[[dict[str, Array], O, Params, LlamaConfig, Array | None], Bound]
    cost: Callable[[O, LlamaConfig], AdapterCost]
    with_strength: Callable[[Adapter, float], Adapter] | None = None
    per_row: bool = True
    trains_base: bool = False


def scaled(*prefixes: str) -> Callable[[Adapter, float], Adapter]:
    """Returns a `Method.with_strength` that multiplies the trained arrays whose names begin with one of these."""

    def with_strength(adapter: Adapter, strength: float) -> Adapter:
        trained = {name: x * strength if name.startswith(prefixes) else x for name, x in adapter.trainable.items()}
        return adapter.replace(trainable=trained)

    return with_strength

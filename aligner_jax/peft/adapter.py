"""`Adapter`, the trained arrays of one method, and `Method`, the record of a method, with its typed `Options`."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
from jaxtyping import Array

from aligner_jax.errors import InputError
from aligner_jax.files.fields import MAX_INTEGER, shown
from aligner_jax.files.identity import identity
from aligner_jax.model.llama import LlamaConfig, Params
from aligner_jax.model.params import described_leaves
from aligner_jax.peft.bound import Bound
from aligner_jax.runtime.fields import number
from aligner_jax.runtime.roofline import AdapterCost


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a method: a frozen dataclass that `runtime.fields.parse_section` reads.

    Numeric fields are declared with `runtime.fields.number`, which sets their bounds. Instances are hashable, so that
    the structure of an `Adapter` is static.
    """

    def check(self, config: LlamaConfig | None) -> None:
        """Raises InputError if options contradict each other or the model.

        Args:
          config: configuration of the model; None if an adapter's file is read without its base.
        """

    @property
    def least_layers(self) -> int:
        """Fewest layers of a model that the options fit."""
        return 1

    @property
    def needs_base(self) -> bool:
        """True if initial arrays are computed from the base's parameters."""
        return False

    def as_dict(self) -> dict[str, Any]:
        """Returns the options by name, sorted by name, without `later` options at their defaults.

        Files and digests of adapters are thus those of earlier releases.
        """
        return dict(sorted(identity(self).items()))

    def __getitem__(self, name: str) -> Any:
        values = self.as_dict()
        return values[name] if name in values else getattr(self, name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerOptions(Options):
    """Options of a method that adapts all layers from start_layer.

    Attributes:
      start_layer: index of the first adapted layer.
    """

    start_layer: int = number(2, least=0, below=MAX_INTEGER)

    def check(self, config: LlamaConfig | None) -> None:
        """Raises InputError unless start_layer is a layer of the model."""
        if config is not None and self.start_layer >= config.num_layers:
            raise InputError(
                f"start_layer is {shown(self.start_layer)}, but the model has layers 0 to {config.num_layers - 1}"
            )

    @property
    def least_layers(self) -> int:
        """Fewest layers of a model that has a layer start_layer."""
        return self.start_layer + 1

    def adapted(self, config: LlamaConfig) -> range:
        """Returns the indices of the adapted layers."""
        return range(self.start_layer, config.num_layers)

    def num_adapted(self, config: LlamaConfig) -> int:
        """Returns the number of adapted layers."""
        return len(self.adapted(config))


class Adapter(flax.struct.PyTreeNode):
    """Trained arrays of one method. The arrays are the only leaves of this pytree.

    Attributes:
      trainable: arrays by name; for "aligner" tokens_pd and gates_ln (l counts adapted layers only), float32.
      method: a key of `aligner_jax.peft.METHODS`.
      options: complete options of the method.
    """

    trainable: dict[str, Array]
    method: str = flax.struct.field(pytree_node=False)
    options: Options = flax.struct.field(pytree_node=False)

    @property
    def num_params(self) -> int:
        """Number of trained parameters."""
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(self.trainable))

    @property
    def identity(self) -> str:
        """Method and options as text for digests, without `later` options at their defaults."""
        return _described(self.method, dict(sorted(identity(self.options).items())))

    def __str__(self) -> str:
        return _described(self.method, self.options.as_dict())

    def __repr__(self) -> str:
        return f"Adapter({self}, {described_leaves(self.trainable)})"


def _described(method: str, options: dict[str, Any]) -> str:
    return f"{method}({', '.join(f'{name}={value}' for name, value in options.items())})"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method[O: Options]:
    """One method of fine-tuning; `docs/extending.md` shows how to write one.

    Attributes:
      options: dataclass of the method's options; `options()` has the defaults.
      shapes: maps (options, config) to the shapes of the trained arrays by name. A name ends in an underscore and one
        letter per axis (legend in `model/llama.py`).
      init: maps (options, config, key) to initial float32 arrays of these shapes. A method whose options can have
        `needs_base` takes the base's parameters as a fourth argument; None gives arrays of these shapes.
      bind: maps (trainable, options, params, config, dropout_key) to a `Bound`. The key belongs to one training step;
        None applies no dropout.
      cost: maps (options, config) to the cost that the method adds to a training step.
      with_strength: maps (adapter, strength) to the adapter with its effect on every layer multiplied by the strength,
        see `scaled`; None if the effect is not linear in any of the arrays.
      per_row: True if the rows of a batch can have different adapters (`rows.bind_rows`).
      trains_base: True if the base's weights have gradients, so that the base cannot be quantized.
    """

    options: type[O]
    shapes: Callable[[O, LlamaConfig], dict[str, tuple[int, ...]]]
    init: Callable[..., dict[str, Array]]
    bind: Callable[[dict[str, Array], O, Params, LlamaConfig, Array | None], Bound]
    cost: Callable[[O, LlamaConfig], AdapterCost]
    with_strength: Callable[[Adapter, float], Adapter] | None = None
    per_row: bool = True
    trains_base: bool = False


def scaled(*prefixes: str) -> Callable[[Adapter, float], Adapter]:
    """Returns a `Method.with_strength` that multiplies the trained arrays with these name prefixes."""

    def with_strength(adapter: Adapter, strength: float) -> Adapter:
        trained = {name: x * strength if name.startswith(prefixes) else x for name, x in adapter.trainable.items()}
        return adapter.replace(trainable=trained)

    return with_strength

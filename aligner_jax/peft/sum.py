"""A sum of adapters. Each part is bound to the base alone, and the parts' effects on a layer are added.

The sum is exact: prefixes have a softmax each, and updates of a weight or bias are added to it. The trained arrays of a
part have the part's name before their own, as in "aligner_0/gates_ln".
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jaxtyping import Array

from aligner_jax.errors import InputError
from aligner_jax.model.llama import LlamaConfig, Params
from aligner_jax.peft.adapter import Adapter, Method, Options
from aligner_jax.peft.aligner import ALIGNER, AlignerOptions
from aligner_jax.peft.bias import BIAS, BiasOptions
from aligner_jax.peft.bound import Bound
from aligner_jax.peft.llama_adapter import LLAMA_ADAPTER, LlamaAdapterOptions
from aligner_jax.peft.lora import LORA, LoraOptions
from aligner_jax.runtime.roofline import AdapterCost

PARTS: dict[str, Method[Any]] = {"aligner": ALIGNER, "llama_adapter": LLAMA_ADAPTER, "bias": BIAS, "lora": LORA}
"""Methods that a sum can have as parts. Those that project prefix tokens come first: applied in this order, one after
the other (`together.bind_together`), parts compute what they compute side by side."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SumOptions(Options):
    """Options of every part, by method; `combine.combine` makes them.

    Attributes:
      aligner: options of the Aligners.
      llama_adapter: options of the LLaMA-Adapters.
      bias: options of the biases.
      lora: options of the LoRAs.
    """

    aligner: tuple[AlignerOptions, ...] = (AlignerOptions(),)
    llama_adapter: tuple[LlamaAdapterOptions, ...] = ()
    bias: tuple[BiasOptions, ...] = ()
    lora: tuple[LoraOptions, ...] = ()

    def check(self, config: LlamaConfig | None) -> None:
        """Raises InputError if there is no part, or if a part's options contradict each other or the model."""
        for _, _, options in self.parts():
            options.check(config)
        if not any(True for _ in self.parts()):
            raise InputError("a sum of adapters has no parts")

    def as_dict(self) -> dict[str, Any]:
        """Returns the options of all parts by method, sorted by name."""
        return {method: [options.as_dict() for options in getattr(self, method)] for method in sorted(PARTS)}

    @property
    def needs_base(self) -> bool:
        """True if initial arrays of a part are computed from the base's parameters."""
        return any(options.needs_base for _, _, options in self.parts())

    @property
    def least_layers(self) -> int:
        """Fewest layers of a model that all parts adapt."""
        return max(options.least_layers for _, _, options in self.parts())

    def parts(self) -> Iterator[tuple[str, str, Options]]:
        """Yields the name, method and options of every part, in the order of `PARTS`."""
        for method in PARTS:
            for index, options in enumerate(getattr(self, method)):
                yield f"{method}_{index}/", method, options


def parts_of(adapter: Adapter) -> list[Adapter]:
    """Returns the parts of a sum, in the order of `PARTS`; an adapter of another method is its only part."""
    if not isinstance(adapter.options, SumOptions):
        return [adapter]
    return [
        Adapter(_of_part(adapter.trainable, part), method=method, options=options)
        for part, method, options in adapter.options.parts()
    ]


def sum_of(parts: Sequence[Adapter]) -> Adapter:
    """Returns the sum of adapters whose methods are in `PARTS`."""
    by_method = {method: [part for part in parts if part.method == method] for method in PARTS}
    options = SumOptions(**{method: tuple(part.options for part in found) for method, found in by_method.items()})  # pyright: ignore[reportArgumentType]
    in_order = [part for found in by_method.values() for part in found]
    trainable = {
        name + key: x
        for (name, _, _), part in zip(options.parts(), in_order, strict=True)
        for key, x in part.trainable.items()
    }
    return Adapter(trainable, method="sum", options=options)


def shapes(options: SumOptions, config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of all parts' trained arrays."""
    return {
        part + name: shape
        for part, method, own in options.parts()
        for name, shape in PARTS[method].shapes(own, config).items()
    }


def init(options: SumOptions, config: LlamaConfig, key: Array, params: Params | None = None) -> dict[str, Array]:
    """Returns the initial arrays of all parts, each from a key of its own; the model equals the base."""
    trainable = {}
    for index, (part, method, own) in enumerate(options.parts()):
        of_base = (params,) if own.needs_base else ()
        initial = PARTS[method].init(own, config, jax.random.fold_in(key, index), *of_base)
        trainable |= {part + name: x for name, x in initial.items()}
    return trainable


def bind(
    trainable: dict[str, Array],
    options: SumOptions,
    params: Params,
    config: LlamaConfig,
    dropout_key: Array | None = None,
) -> Bound:
    """Binds every part to the base alone, and returns the prefixes and updates of all of them."""
    adapted = []
    for index, (part, method, own) in enumerate(options.parts()):
        key = None if dropout_key is None else jax.random.fold_in(dropout_key, index)
        adapted.extend(PARTS[method].bind(_of_part(trainable, part), own, params, config, key).adapted)
    return Bound(adapted=tuple(adapted))


def cost(options: SumOptions, config: LlamaConfig) -> AdapterCost:
    """Returns the sum of the parts' costs, as if all of them began at the first adapted layer."""
    costs = [PARTS[method].cost(own, config) for _, method, own in options.parts()]
    # Single tokens are constants, so they are no keys beside other prefixes.
    num_tokens = sum(each.num_tokens for each in costs if each.num_tokens > 1)
    num_tokens = num_tokens or max(each.num_tokens for each in costs)
    projected = sum(each.bind_products for each in costs)
    return AdapterCost(
        start_layer=min(each.start_layer for each in costs),
        num_tokens=num_tokens,
        bind_weights=projected // max(num_tokens, 1),
        trained_weights=sum(each.trained_weights for each in costs),
    )


def with_strength(adapter: Adapter, strength: float) -> Adapter:
    """Returns the sum with every part's effect multiplied."""
    parts = []
    for part in parts_of(adapter):
        multiply = PARTS[part.method].with_strength
        assert multiply is not None
        parts.append(multiply(part, strength))
    return sum_of(parts)


def _of_part(trainable: dict[str, Array], part: str) -> dict[str, Array]:
    return {name.removeprefix(part): x for name, x in trainable.items() if name.startswith(part)}


SUM = Method(options=SumOptions, shapes=shapes, init=init, bind=bind, cost=cost, with_strength=with_strength)

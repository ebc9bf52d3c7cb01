"""The loop over the layers: the one scan that training, decoding, analysis and adapters share (legend: llama.py)."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from aligner_jax.errors import InputError
from aligner_jax.model.attention import RESIDUAL, Prefix
from aligner_jax.model.config import LlamaConfig
from aligner_jax.model.layout import as_stored
from aligner_jax.model.logical import constrain, is_split
from aligner_jax.model.params import Layers, is_spec, param_specs
from aligner_jax.model.quantized import Quantized
from aligner_jax.model.updates import Update, Updates, updated

Remat = Literal["full", "dots", "none"]


@flax.struct.dataclass
class Adapted:
    """An adapter's part in a range of layers; leaves are stacked over the range.

    Attributes:
      layers: the adapted layers.
      prefix: prepended to their attention.
      updates: added to their weights, by field of `Layers`.
    """

    layers: range = flax.struct.field(pytree_node=False)
    prefix: Prefix | None = None
    updates: Updates = flax.struct.field(default_factory=dict)

    def within(self, part: range) -> "Adapted":
        """Returns the slice for `part`, which lies in `layers`."""
        if part == self.layers:
            return self
        start, stop = part.start - self.layers.start, part.stop - self.layers.start
        return jax.tree.map(lambda leaf: leaf[start:stop], self).replace(layers=part)


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer within the loop; leaves have no layer axis.

    Attributes:
      index: its index in the model.
      weights: the base's weights.
      prefix: of the adapter that has one here.
      updates: of every adapter that has some here, in order.
    """

    index: Int[Array, ""]
    weights: Layers
    prefix: Prefix | None = None
    updates: tuple[Mapping[str, Update], ...] = ()

    def updated(self) -> Layers:
        """Returns the base's weights with the updates beside them."""
        return functools.reduce(updated, self.updates, self.weights)


def run_layers[Carry](
    step: Callable[[Carry, Layer], tuple[Carry, Any]],
    carry: Carry,
    layers: Layers,
    indices: range,
    adapted: Sequence[Adapted] = (),
    *,
    read: Callable[[Layers, Int[Array, ""]], Layers] | None = None,
    remat: Remat | None = None,
) -> tuple[Carry, Any]:
    """Runs `step` on the layers in order, and returns the last carry and the steps' outputs stacked over the layers.

    The loop is one scan for each segment of layers that the same adapters adapt. A gradient with respect to an adapter
    never enters the layers below its range.

    Args:
      step: maps the carry (the residual stream, a cache, …) and a `Layer` to the next carry and an output or None.
      layers: the stacked weights.
      indices: the layers to run.
      adapted: the adapters' parts; at most one of them has a prefix at any layer.
      read: takes one layer's weights out of the stack; default `layer_at`.
      remat: what the backward pass recomputes, see `remat_policy`. None: `jax.checkpoint` is not used.

    Raises:
      InputError: two adapters have a prefix at one layer, or an unknown remat.
    """
    read = read or layer_at
    outputs = []
    for segment in _segments(indices, adapted):
        here = [part.within(segment) for part in adapted if segment.start in part.layers]
        prefixes = [part.prefix for part in here if part.prefix is not None]
        if len(prefixes) > 1:
            raise InputError(
                f"{len(prefixes)} of the adapters have a prefix at layer {segment.start}: apply one of them only"
            )

        def one(carry, index_and_adapted):
            index, prefix, updates = index_and_adapted
            return step(carry, Layer(index, read(layers, index), prefix, updates))

        if remat is not None:
            one = jax.checkpoint(one, prevent_cse=False, policy=remat_policy(remat))
        prefix, updates = next(iter(prefixes), None), tuple(part.updates for part in here if part.updates)
        carry, output = jax.lax.scan(one, carry, (jnp.arange(segment.start, segment.stop), prefix, updates))
        outputs.append(output)
    if len(outputs) == 1:
        return carry, outputs[0]
    return carry, jax.tree.map(lambda *parts: jnp.concatenate(parts), *outputs)


def layer_at[T](layers: T, index: Int[Array, ""]) -> T:
    """Returns one layer's weights out of the stack: of `Layers`, or of any part of them.

    The stack stays a constant of the scan and is indexed inside it: handing a scan a slice of the stack (the layers
    from the first adapted one on) would copy almost the whole model.
    """
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False), layers)


def layer_as_stored(layers: Layers, index: Int[Array, ""], *, config: LlamaConfig) -> Layers:
    """Returns `layer_at`, on TPUs in the order in which the stacks lie in memory.

    In an order of the compiler's own, some of the stacks would be copied ahead of the loop.
    """

    def ordered(spec, weight):
        return jax.tree.map(lambda x: as_stored(x, spec.axes[1:]), weight)

    return jax.tree.map(ordered, param_specs(config).layers, layer_at(layers, index), is_leaf=is_spec)


def layer_for_training(layers: Layers, index: Int[Array, ""], *, config: LlamaConfig, remat: Remat) -> Layers:
    """Returns `layer_at` in the order and the sharding in which a training step reads weights fastest."""
    layer = layer_at(layers, index)
    # With "none" each layer's ordered weights would be kept until the backward pass: a second copy of the model.
    return gathered(layer if remat == "none" else _in_order(layer), config)


def gathered(layer: Layers, config: LlamaConfig) -> Layers:
    """Returns one layer's weights, replicated along the axis that is only split for storage.

    Without it the compiler may rather move activations, which are larger.
    """
    if not is_split():
        return layer
    specs = param_specs(config).layers

    def gather(spec, weight):
        axes = [None if axis == "embed" else axis for axis in spec.axes[1:]]
        # A quantized weight is gathered as it is held.
        return jax.tree.map(lambda x: constrain(x, *axes), weight)

    return jax.tree.map(gather, specs, layer, is_leaf=is_spec)


def remat_policy(remat: Remat) -> Callable[..., bool]:
    """Returns the `jax.checkpoint` policy of that name.

    "full" recomputes all of a layer from its input; "dots" all but the results of the matrix products with weights and
    of attention; "none" nothing but the slices of the weights.

    Raises:
      InputError: there is none.
    """
    policies = {
        "full": jax.checkpoint_policies.nothing_saveable,
        "dots": jax.checkpoint_policies.save_from_both_policies(
            jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
            jax.checkpoint_policies.save_only_these_names(RESIDUAL),
        ),
        "none": _everything_but_weight_slices,
    }
    if remat not in policies:
        raise InputError(f"remat {remat!r} is not one of {', '.join(policies)}")
    return policies[remat]


def _segments(indices: range, adapted: Sequence[Adapted]) -> list[range]:
    """Ranges whose layers are adapted by the same adapters."""
    ends = {indices.start, indices.stop}
    ends |= {end for part in adapted for end in (part.layers.start, part.layers.stop) if end in indices}
    return [range(start, stop) for start, stop in itertools.pairwise(sorted(ends))]


def _in_order(layer: Layers) -> Layers:
    """One layer's weights, on TPUs in the order in which the stacks lie in memory.

    The compiler would rather have queries' and keys' in another order, and copies their whole stacks ahead of the loop
    over layers, where they stay for the step: so it is a layer's weights that are put into order. Weights of a single
    device that are not quantized it reads where they lie.
    """
    if not is_split() and not any(isinstance(leaf, Quantized) for leaf in vars(layer).values()):
        return layer
    return jax.tree.map(as_stored, layer)


def _everything_but_weight_slices(primitive, *_, **__) -> bool:
    # Saving each layer's slice of the stacks would hold a second copy of the model until the backward pass. Indexing is
    # a slice and then a squeeze, and the squeeze would be saved in the slice's place.
    return primitive.name not in ("dynamic_slice", "squeeze")

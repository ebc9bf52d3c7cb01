"""The scan over layers that training, decoding, analysis and adapters share (shape legend: llama.py)."""

import dataclasses
import functools
import itertools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from aligner_jax.model.attention import RESIDUAL, Prefix
from aligner_jax.model.config import LlamaConfig
from aligner_jax.model.layout import as_stored
from aligner_jax.model.logical import constrain, is_split
from aligner_jax.model.params import Layers, is_spec, param_specs
from aligner_jax.model.quantized import Quantized
from aligner_jax.model.remat import Remat, parts
from aligner_jax.model.row_prefix import RowPrefix
from aligner_jax.model.updates import Update, Updates, updated


@flax.struct.dataclass
class Adapted:
    """Prefix and updates of a range of layers; leaves are stacked over the range.

    Attributes:
      layers: indices of the adapted layers.
      prefix: prefix of their attention.
      row_prefix: prefixes of rows that have adapters of their own.
      updates: updates of their weights, by field of `Layers`.
    """

    layers: range = flax.struct.field(pytree_node=False)
    prefix: Prefix | None = None
    row_prefix: RowPrefix | None = None
    updates: Updates = flax.struct.field(default_factory=dict)

    def within(self, part: range) -> "Adapted":
        """Returns the slice for `part`, a subrange of `layers`."""
        if part == self.layers:
            return self
        start, stop = part.start - self.layers.start, part.stop - self.layers.start
        return jax.tree.map(lambda leaf: leaf[start:stop], self).replace(layers=part)


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer within the scan; leaves have no layer axis.

    Attributes:
      index: index of the layer in the model.
      weights: weights of the base.
      prefixes: prefixes of all adapters, each with a softmax of its own; at most one is joint.
      updates: updates of all adapters, in the order in which they are applied.
    """

    index: Int[Array, ""]
    weights: Layers
    prefixes: tuple[Prefix | RowPrefix, ...] = ()
    updates: tuple[Mapping[str, Update], ...] = ()

    def updated(self) -> Layers:
        """Returns the base's weights with all updates applied (`updates.updated`)."""
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
    unroll_on_gpu: bool = False,
) -> tuple[Carry, Any]:
    """Scans `step` over the layers; returns the last carry and the outputs stacked over the layers.

    Layers are scanned in segments with the same adapters and the same rematerialization. So the backward pass with
    respect to an adapter never enters the layers below its range.

    Args:
      step: maps the carry (the residual stream, a cache, …) and a `Layer` to the next carry and an output or None.
      carry: initial carry.
      layers: stacked weights.
      indices: indices of the layers to run.
      adapted: prefixes and updates of the adapters, in the order in which they are applied.
      read: indexes one layer's weights out of the stack; by default `layer_at`.
      remat: rematerialization, see `remat.parts`; None does not use `jax.checkpoint`.
      unroll_on_gpu: unrolls the scan on GPUs, so that weights are read in place. In a loop, XLA's GPU compiler copies
        every layer's weights out of the stacks, which triples the memory traffic of a decode step.

    Raises:
      InputError: remat is unknown.
    """
    read = read or layer_at
    outputs = []
    policies = [(indices, None)] if remat is None else parts(remat, indices)
    for segment, saved in _segments(policies, adapted):
        here = [part.within(segment) for part in adapted if segment.start in part.layers]

        def one(carry, index_and_adapted):
            index, prefixes, updates = index_and_adapted
            return step(carry, Layer(index, read(layers, index), prefixes, updates))

        if saved is not None:
            one = jax.checkpoint(one, prevent_cse=False, policy=remat_policy(saved))
        of_parts = [prefix for part in here for prefix in (part.prefix, part.row_prefix)]
        prefixes = tuple(prefix for prefix in of_parts if prefix is not None)
        updates = tuple(part.updates for part in here if part.updates)
        xs = (jnp.arange(segment.start, segment.stop), prefixes, updates)
        if unroll_on_gpu:
            scan, unrolled = functools.partial(jax.lax.scan, one), functools.partial(_unrolled, one, segment)
            carry, output = jax.lax.platform_dependent(carry, xs, cuda=unrolled, default=scan)
        else:
            carry, output = jax.lax.scan(one, carry, xs)
        outputs.append(output)
    if len(outputs) == 1:
        return carry, outputs[0]
    return carry, jax.tree.map(lambda *parts: jnp.concatenate(parts), *outputs)


def _unrolled(one: Callable[[Any, Any], tuple[Any, Any]], segment: range, carry: Any, xs: Any) -> tuple[Any, Any]:
    """Returns what `jax.lax.scan` does, with a constant index in every layer; `one` is traced once."""
    traced, (_, *stacked), outputs = jax.jit(one), xs, []
    for i, index in enumerate(segment):
        carry, output = traced(carry, (np.int32(index), *jax.tree.map(operator.itemgetter(i), stacked)))
        outputs.append(output)
    return carry, jax.tree.map(lambda *layers: jnp.stack(layers), *outputs)


def layer_at[T](layers: T, index: Int[Array, ""]) -> T:
    """Returns one layer's weights from a stack, which may be `Layers` or any part of it.

    The stack is a constant of the scan and is indexed inside it. To scan over a slice of the stack (all layers from the
    first adapted one on) would copy almost the whole model.
    """
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False), layers)


def layer_as_stored(layers: Layers, index: Int[Array, ""], *, config: LlamaConfig) -> Layers:
    """Returns `layer_at`; on TPUs the weights keep the memory layout of the stacks.

    If the compiler chose another layout, it would copy some of the stacks before the scan, and keep the copies.
    """

    def ordered(spec, weight):
        return jax.tree.map(lambda x: as_stored(x, spec.axes[1:]), weight)

    return jax.tree.map(ordered, param_specs(config).layers, layer_at(layers, index), is_leaf=is_spec)


def layer_for_training(layers: Layers, index: Int[Array, ""], *, config: LlamaConfig, remat: Remat) -> Layers:
    """Returns `layer_at` with the memory layout and sharding that are fastest for a training step."""
    is_quantized = any(isinstance(leaf, Quantized) for leaf in vars(layers).values())
    # Remat "none" would save each layer's laid-out weights for the backward pass: a second copy of the model. A single
    # device reads weights that are not quantized in place.
    if remat == "none" or not (is_split() or is_quantized):
        return gathered(layer_at(layers, index), config)
    return gathered(layer_as_stored(layers, index, config=config), config)


def gathered(layer: Layers, config: LlamaConfig) -> Layers:
    """Returns one layer's weights, replicated along "embed", the axis that is sharded for storage only.

    Without this constraint the compiler may communicate activations instead, which are larger.
    """
    if not is_split():
        return layer
    specs = param_specs(config).layers

    def gather(spec, weight):
        axes = [None if axis == "embed" else axis for axis in spec.axes[1:]]
        # A quantized weight is gathered in its quantized form, which is smaller.
        return jax.tree.map(lambda x: constrain(x, *axes), weight)

    return jax.tree.map(gather, specs, layer, is_leaf=is_spec)


def remat_policy(name: str) -> Callable[..., bool]:
    """Returns the `jax.checkpoint` policy of this name, which is one of `remat.POLICIES`.

    "full" saves only the input of each layer. "dots" also saves the results of matrix products with weights and of
    attention. "none" saves everything but the slices of the weights.
    """
    return {
        "full": jax.checkpoint_policies.nothing_saveable,
        "dots": jax.checkpoint_policies.save_from_both_policies(
            jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
            jax.checkpoint_policies.save_only_these_names(RESIDUAL),
        ),
        "none": _everything_but_weight_slices,
    }[name]


def _segments(
    policies: Sequence[tuple[range, str | None]], adapted: Sequence[Adapted]
) -> Iterator[tuple[range, str | None]]:
    """Yields ranges of layers with the same adapters, each with its policy."""
    for layers, saved in policies:
        ends = {layers.start, layers.stop}
        ends |= {end for part in adapted for end in (part.layers.start, part.layers.stop) if end in layers}
        for start, stop in itertools.pairwise(sorted(ends)):
            yield range(start, stop), saved


def _everything_but_weight_slices(primitive, *_, **__) -> bool:
    # Saved slices of the stacks would be a second copy of the model. Indexing is a slice followed by a squeeze, and the
    # squeeze would be saved in place of the slice.
    return primitive.name not in ("dynamic_slice", "squeeze")

"""Tensors of a GGUF file of llama.cpp's architecture llama, from the leaves of a model of any form."""

import dataclasses
import functools
import math
from collections.abc import Container, Iterator

import numpy as np

from aligner_jax.model.config import LlamaConfig
from aligner_jax.model.rope import inverse_frequencies
from aligner_jax.weights.assemble import Parts
from aligner_jax.weights.fill import arranged, axes_of, groups_of
from aligner_jax.weights.gguf import INTERLEAVED
from aligner_jax.weights.gguf_write import KINDS, GGUFTensor, Kind, encoded, kind_for
from aligner_jax.weights.leaves import leaf_specs
from aligner_jax.weights.source import Slot

_READ_BYTES = 64 * 2**20
"""Most bytes of a tensor, in float32, that are read at a time."""


def gguf_tensors(
    config: LlamaConfig, parts: Parts, kind: Kind, *, at_once: Container[str] = ()
) -> Iterator[GGUFTensor]:
    """Yields the tensors in the order of llama.cpp's converter; matrices are of type `kind`, see `kind_for`.

    Args:
      config: configuration of the model.
      parts: reads the model's leaves in float32.
      at_once: leaves of which a tensor is read at once, not some rows at a time.
    """
    specs = leaf_specs(config)
    slots = {name: slot for name, slot in INTERLEAVED.slots.items() if slot.leaf in specs}
    if config.rope_scaling is not None:
        plain = dataclasses.replace(config, rope_scaling=None)
        factors = inverse_frequencies(plain) / inverse_frequencies(config)
        name = "rope_freqs.weight"
        yield GGUFTensor(name, factors.shape, KINDS["float32"], lambda: encoded(factors, KINDS["float32"], name))
    for name in [name for name in slots if "{l}" not in name]:
        yield read_tensor(name, slots[name], None, config, parts, kind, at_once=slots[name].leaf in at_once)
    for layer in range(config.num_layers):
        for name in [name for name in slots if "{l}" in name]:
            once = slots[name].leaf in at_once
            yield read_tensor(name.format(l=layer), slots[name], layer, config, parts, kind, at_once=once)


def read_tensor(
    name: str, slot: Slot, layer: int | None, config: LlamaConfig, parts: Parts, kind: Kind, *, at_once: bool = False
) -> GGUFTensor:
    """Returns a tensor that is read from a model's leaf and encoded when it is written.

    Args:
      name: name in the file.
      slot: leaf and layout.
      layer: layer; None for a leaf without layers.
      config: configuration of the model.
      parts: reads the model's leaves in float32.
      kind: type of a matrix.
      at_once: True reads a large tensor at once, False some rows at a time.
    """
    axes = axes_of(slot.leaf)
    sizes = dict(zip(axes, leaf_specs(config)[slot.leaf].shape, strict=True))
    shape = tuple(math.prod(sizes[axis] for axis in group.replace("ic", "h")) for group in groups_of(slot.layout))
    kind = kind_for(kind, shape)
    first = groups_of(slot.layout)[0][0]
    step = sizes[first]
    if not at_once:
        step = max(1, min(step, _READ_BYTES * step // (4 * math.prod(shape))))
    chunks = functools.partial(_chunks, name, slot, layer, parts, kind, (axes.index(first), sizes[first], step))
    return GGUFTensor(name, shape, kind, chunks)


def _chunks(
    name: str, slot: Slot, layer: int | None, parts: Parts, kind: Kind, along: tuple[int, int, int]
) -> Iterator[np.ndarray]:
    """Yields a tensor's bytes. It is read in ranges of an axis of its leaf: the axis, its size, and that of a range."""
    axis, size, step = along
    axes = axes_of(slot.leaf)
    for start in range(0, size, step):
        index = [slice(None)] * len(axes)
        index[axis] = slice(start, min(start + step, size))
        if layer is not None:
            index[0] = slice(layer, layer + 1)
        x = parts(slot.leaf, [index])[0]
        x = arranged(x, axes, slot.layout) if layer is None else arranged(x[0], axes[1:], slot.layout)
        yield from encoded(x, kind, name)

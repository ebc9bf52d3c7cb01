"""Assembles `Params` from the tensors of a checkpoint, without a second copy of the model.

A format is a table from tensor names to leaves of `Params`. All names and shapes are checked before a weight is read.
Each leaf is then allocated in its final dtype, either whole or in the parts that this process's devices hold, and is
filled from the files a few rows at a time.
"""

import functools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding

from aligner_jax.errors import InputError
from aligner_jax.model.config import LlamaConfig
from aligner_jax.model.params import Params, Spec
from aligner_jax.runtime.waiting import advance_reading
from aligner_jax.weights.fill import Place, axes_of, chunks, fill, groups_of
from aligner_jax.weights.leaves import (
    DTYPES,
    Finish,
    Shardings,
    build_params,
    check_dtype,
    leaf_specs,
    make_on_devices,
)
from aligner_jax.weights.source import Checkpoint, Format, Source

type Parts = Callable[[str, Sequence[Sequence[slice]]], list[np.ndarray]]
"""Reads parts of a leaf. Takes the leaf's name and one index per part: a slice of every axis."""


def assemble(
    checkpoint: Checkpoint, dtype: str, *, shardings: Shardings = None, finish: Finish = None
) -> tuple[LlamaConfig, Params]:
    """Returns a model's configuration and parameters, assembled from the tensors of its checkpoint.

    With shardings, this process reads only the rows that its own devices hold a part of, and reads them once. The host
    then holds at most about one device's part of one leaf, besides what is on the devices. Without shardings, every
    leaf is whole on the default device.

    Args:
      dtype: dtype of the parameters; see `open_parts`.
      shardings: see `leaves.Shardings`.
      finish: see `leaves.Finish`.

    Raises:
      InputError: see `open_parts`.
    """
    parts = open_parts(checkpoint, dtype)

    def make(leaf: str, spec: Spec, sharding: NamedSharding | None) -> jax.Array:
        if sharding is None:
            return jax.device_put(parts(leaf, [[slice(None)] * len(spec.shape)])[0])
        return make_on_devices(spec.shape, sharding, DTYPES[dtype], functools.partial(parts, leaf))

    return checkpoint.config, build_params(checkpoint.config, make, shardings=shardings, finish=finish)


def open_parts(checkpoint: Checkpoint, dtype: str) -> Parts:
    """Returns a function that reads parts of a checkpoint's leaves, after all names and shapes are checked.

    Args:
      dtype: dtype of the parts, "float32", "bfloat16" or "float16". Rounding to "bfloat16" is to nearest even. Every
        weight must be exact in "float16"; `base.load_base` rounds to it after the fingerprint is known.

    Raises:
      InputError: a tensor is unknown, missing, duplicated, incomplete, of a wrong shape or of an unsupported encoding;
        a redundant tensor differs from the one it repeats; or dtype is not supported. Reading the parts also raises
        it, if a weight is not finite or does not fit the dtype.
    """
    numbers = check_dtype(dtype)
    config, form, where = checkpoint.config, checkpoint.form, checkpoint.where
    count = len(checkpoint.sources)
    if config.num_layers > count:
        raise InputError(f"{where} has {count} tensors, too few for the {config.num_layers} layers it speaks of")
    specs = leaf_specs(config)
    places = dict(_places(config, specs, form))
    found = _account(checkpoint.sources, places, form, where)
    by_leaf: dict[str, list[tuple[Source, Place]]] = {leaf: [] for leaf in specs}
    for name, sources in found.items():
        by_leaf[places[name].slot.leaf] += [(source, places[name]) for source in sources]
    total = sum(math.prod(source.shape) for placed in by_leaf.values() for source, _ in placed)

    def read(leaf: str, indexes: Sequence[Sequence[slice]]) -> list[np.ndarray]:
        shape = specs[leaf].shape
        part = min(1.0, sum(_size(index, shape) for index in indexes) / math.prod(shape))
        return fill(leaf, shape, _told(by_leaf[leaf], part / total), form, numbers, indexes)

    return read


def _size(index: Sequence[slice], shape: Sequence[int]) -> int:
    return math.prod(len(range(*cut.indices(size))) for cut, size in zip(index, shape, strict=True))


def _told(placed: Iterable[tuple[Source, Place]], share_of_entry: float) -> Iterator[tuple[Source, Place]]:
    """Yields the sources, and tells how far the reading has come after each."""
    for source, place in placed:
        yield source, place
        advance_reading(math.prod(source.shape) * share_of_entry)


def _places(config: LlamaConfig, specs: Mapping[str, Spec], form: Format) -> Iterator[tuple[str, Place]]:
    for name, slot in form.slots.items():
        if slot.leaf not in specs:
            continue
        sizes = dict(zip(axes_of(slot.leaf), specs[slot.leaf].shape, strict=True))
        sizes |= {"i": config.head_dim // 2, "c": 2}
        shape = tuple(math.prod(sizes[axis] for axis in group) for group in groups_of(slot.layout))
        if "{l}" not in name:
            yield name, Place(slot, None, shape)
            continue
        for layer in range(config.num_layers):
            yield name.format(l=layer), Place(slot, layer, shape)


def _account(
    sources: Iterable[Source], places: Mapping[str, Place], form: Format, where: Path
) -> dict[str, list[Source]]:
    """Returns the sources of every tensor: one, or one per part."""
    found: dict[str, list[Source]] = {}
    extra: list[Source] = []
    for source in sources:
        name = source.name
        if any(re.fullmatch(pattern, name) for pattern in form.ignored):
            continue
        for other in [*found.get(name, []), *(one for one in extra if one.name == name)]:
            if source.part is None or other.part is None or source.part == other.part:
                place = f"in {other.file.name} too" if other.file != source.file else "twice"
                raise InputError(f"{source.file}: tensor {name} is there {place}")
        if name in form.redundant and name not in places:
            extra.append(source)
            continue
        if name not in places:
            raise InputError(f"{source.file}: tensor {name} has no place in this model")
        _check_shape(source, places[name])
        form.check_encoding(source)
        found.setdefault(name, []).append(source)
    for source in list(extra):
        if (original := form.redundant[source.name]) not in found:
            # A checkpoint may store tied weights under either name.
            _check_shape(source, places[original])
            form.check_encoding(source)
            found[original] = [source]
            extra.remove(source)
    missing = [name for name in places if name not in found]
    if missing:
        more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError(f"{where}: tensor {missing[0]} is missing{more}")
    for parts in found.values():
        _check_parts(parts, where)
    for source in extra:
        _check_equal(source, found[form.redundant[source.name]], form)
    return found


def _check_shape(source: Source, place: Place) -> None:
    if source.whole_shape != place.shape:
        of_parts = "" if source.part is None else f", of all its parts {list(source.whole_shape)}"
        raise InputError(
            f"{source.file}: tensor {source.name} has shape {list(source.shape)}{of_parts}, "
            f"but the model's configuration asks for {list(place.shape)}"
        )


def _check_parts(sources: list[Source], where: Path) -> None:
    """Raises InputError unless the parts of a tensor cover it without gaps or overlaps."""
    parts = {source.part: source for source in sources if source.part is not None}
    reached, axes = 0, {part.axis for part in parts}
    for part in sorted(parts):
        source = parts[part]
        if len(axes) > 1 or part.start != reached:
            raise InputError(f"{source.file}: tensor {source.name} does not begin where the part before it ends")
        reached += source.shape[part.axis]
        if part == max(parts) and reached != part.size:
            raise InputError(f"{where}: tensor {source.name} is there only up to {reached} of {part.size}")


def _check_equal(source: Source, originals: list[Source], form: Format) -> None:
    form.check_encoding(source)
    original = originals[0]
    equal = source.shape == original.shape and all(
        np.array_equal(form.decode(source, *rows), form.decode(original, *rows))
        for rows in chunks(source.shape[0], source.shape[1:])
    )
    if not equal:
        raise InputError(
            f"{source.file}: tensor {source.name} differs from {original.name}, but the configuration ties the two"
        )

"""From the tensors of files to one part of a leaf: no byte is read that the part does not need, where rows allow it.

A part is a slice of every axis of a leaf: what one device holds, or all of it. Rows of a checkpoint's matrix that lie
outside are not read; of columns outside, one chunk at a time is read and dropped. So the host holds the part and a
chunk, however large the checkpoint's tensors are.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from aligner_jax.weights.source import Format, Part, Slot, Source

_CHUNK_BYTES = 2**20
_ALIGNMENT = 64  # The CPU backend takes a host array without copying it only from here on.


class Place(NamedTuple):
    """Of one tensor: its slot, its layer (None where the leaf has no layers), and the shape it must have."""

    slot: Slot
    layer: int | None
    shape: tuple[int, ...]


def axes_of(leaf: str) -> str:
    """The letters of a leaf's axes: "ldnh" of "q_ldnh"."""
    return leaf.rsplit("_", 1)[1]


def groups_of(layout: str) -> list[str]:
    """The axes that each axis of a tensor runs over: ["nic", "d"] of "(nic)d"."""
    return ["".join(group) for group in re.findall(r"\((\w+)\)|(\w)", layout)]


def fill(
    leaf: str,
    shape: tuple[int, ...],
    placed: Iterable[tuple[Source, Place]],
    form: Format,
    dtype: np.dtype,
    index: Sequence[slice] | None = None,
) -> np.ndarray:
    """One part of a leaf, in memory that the CPU backend takes without a copy.

    Args:
      shape: of the whole leaf.
      placed: every tensor, or part of one, that the leaf is made of.
      dtype: of the result; rounding is to nearest even.
      index: a slice of every axis; None is all of them.

    Raises:
      InputError: a file ends before its tensors do.
    """
    index = (slice(None),) * len(shape) if index is None else index
    ranges = [range(*cut.indices(size)) for cut, size in zip(index, shape, strict=True)]
    # NumPy copies and transposes its own integers several times faster than a bfloat16 it knows nothing of.
    part = _aligned(tuple(map(len, ranges)), np.dtype(f"u{dtype.itemsize}"))
    axes = axes_of(leaf)
    sizes = dict(zip(axes, shape, strict=True))
    wanted = dict(zip(axes, ranges, strict=True))
    for source, place in placed:
        if place.layer is None:
            _fill_from(source, place, form, dtype, part, axes, sizes, wanted)
        elif place.layer in wanted["l"]:
            target = part[place.layer - wanted["l"].start]
            _fill_from(source, place, form, dtype, target, axes[1:], sizes, wanted)
    return part.view(dtype)


def _fill_from(
    source: Source,
    place: Place,
    form: Format,
    dtype: np.dtype,
    target: np.ndarray,
    axes: str,
    sizes: Mapping[str, int],
    wanted: Mapping[str, range],
) -> None:
    """Copies what `target`, which has these axes, wants of one source."""
    groups = groups_of(place.slot.layout)
    numbers = [_numbers(group, sizes, wanted) for group in groups]
    order = [axes.index(axis) for group in groups for axis in _leaf_axes(group)]
    # A vector is a matrix of one column. The letters of a group are neighbours in the leaf, so this is a view.
    target_rc = target.transpose(order).reshape(len(numbers[0]), -1, copy=False)
    rows_at, rows = _inside(numbers[0], source, 0)
    columns_at, columns = _inside(numbers[1], source, 1) if len(numbers) > 1 else (np.arange(1), np.arange(1))
    if not len(rows) or not len(columns):
        return
    pick, put = _indexer(columns), _indexer(columns_at)
    # Rows of a head that are interleaved lie in one range of the file only together.
    together = len(numbers[0]) // len(wanted[groups[0][0]])
    for start, stop in chunks(len(rows), source.shape[1:], together):
        chosen = rows[start:stop]
        first = int(chosen.min())
        decoded = form.decode(source, first, int(chosen.max()) + 1)[_indexer(chosen - first)][:, pick]
        target_rc[_indexer(rows_at[start:stop]), put] = decoded.astype(dtype, copy=False).view(target.dtype)


def _leaf_axes(group: str) -> str:
    return group.replace("ic", "h")


def _numbers(group: str, sizes: Mapping[str, int], wanted: Mapping[str, range]) -> np.ndarray:
    """Which rows (or columns) of a tensor a part wants, in the part's order."""
    axes = _leaf_axes(group)
    shape = [sizes[axis] for axis in axes]
    numbers = np.arange(math.prod(shape))
    if group != axes:
        numbers = numbers.reshape(*shape[:-1], shape[-1] // 2, 2).swapaxes(-1, -2)
    return numbers.reshape(shape)[tuple(slice(wanted[axis].start, wanted[axis].stop) for axis in axes)].ravel()


def _inside(numbers: np.ndarray, source: Source, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Those of a tensor's rows (or columns) that a source has: where they are wanted, and which of its own they are."""
    size = source.shape[axis]
    part = source.part if source.part and source.part.axis == axis else Part(axis, 0, size)
    wanted = np.flatnonzero((numbers >= part.start) & (numbers < part.start + size))
    return wanted, numbers[wanted] - part.start


def _indexer(numbers: np.ndarray) -> slice | np.ndarray:
    """A slice where the numbers are consecutive, since NumPy copies slices several times faster."""
    first, count = int(numbers[0]), len(numbers)
    if np.array_equal(numbers, np.arange(first, first + count)):
        return slice(first, first + count)
    return numbers


def chunks(rows: int, row_shape: tuple[int, ...], multiple: int = 1) -> Iterator[tuple[int, int]]:
    """Ranges of rows of about `_CHUNK_BYTES` in float32, each but the last a multiple of `multiple` rows."""
    row_bytes = max(1, 4 * math.prod(row_shape))
    step = max(1, _CHUNK_BYTES // (row_bytes * multiple)) * multiple
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    nbytes = math.prod(shape) * dtype.itemsize
    buffer = np.empty(nbytes + _ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % _ALIGNMENT
    return buffer[start : start + nbytes].view(dtype).reshape(shape)

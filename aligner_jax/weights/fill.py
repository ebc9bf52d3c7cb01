"""Fills parts of a leaf from the tensors of a checkpoint, and reads only the rows that the parts need.

A part is a slice of every axis of a leaf: the shard of one device, or the whole leaf. Rows of a checkpoint's matrix
that lie outside the part are not read. Columns outside it are read and dropped, one chunk at a time. So the host holds
the part and one chunk, however large the checkpoint's tensors are.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from aligner_jax.weights.finite import rounded
from aligner_jax.weights.source import Format, Part, Slot, Source

_CHUNK_BYTES = 2**20
_ALIGNMENT = 64  # Bytes. The CPU backend copies a host array that is aligned to less.


class Place(NamedTuple):
    """The place of a tensor: its slot, its layer (None if the leaf has no layers), and the shape it must have."""

    slot: Slot
    layer: int | None
    shape: tuple[int, ...]


def axes_of(leaf: str) -> str:
    """Returns the letters of a leaf's axes: "ldnh" for "q_ldnh"."""
    return leaf.rsplit("_", 1)[1]


def groups_of(layout: str) -> list[str]:
    """Returns the leaf axes that each axis of a tensor combines: ["nic", "d"] for "(nic)d"."""
    return ["".join(group) for group in re.findall(r"\((\w+)\)|(\w)", layout)]


def arranged(x: np.ndarray, axes: str, layout: str) -> np.ndarray:
    """Returns a leaf's layer, or a part of one, as a tensor of a checkpoint; the inverse of `fill`.

    Args:
      x: array with the axes `axes`.
      axes: letters of its axes, without "l".
      layout: layout of the tensor; see `Slot`.
    """
    groups = groups_of(layout)
    sizes = dict(zip(axes, x.shape, strict=True))
    turned = x.transpose([axes.index(axis) for group in groups for axis in _leaf_axes(group)])
    if len(groups[0]) > 2:
        # Rotary pairs are interleaved: the halves of the second axis, h, become neighbours.
        heads, dims, *rest = turned.shape
        turned = turned.reshape(heads, 2, dims // 2, *rest).swapaxes(1, 2)
    shape = [math.prod(sizes[axis] for axis in _leaf_axes(group)) for group in groups]
    return np.ascontiguousarray(turned.reshape(shape))


def fill(
    leaf: str,
    shape: tuple[int, ...],
    placed: Iterable[tuple[Source, Place]],
    form: Format,
    dtype: np.dtype,
    indexes: Sequence[Sequence[slice]],
) -> list[np.ndarray]:
    """Returns parts of a leaf, in memory that the CPU backend uses without a copy.

    Parts with different columns of the same rows are filled together, so that no row is read or decoded twice.

    Args:
      shape: shape of the whole leaf.
      placed: every source of the leaf (a tensor, or a part of one) and its place.
      dtype: dtype of the result; see `finite.rounded`.
      indexes: one index per part: a slice of every axis.

    Raises:
      InputError: a file ends inside a tensor, or holds a value that is not finite or that `dtype` cannot hold.
    """
    axes = axes_of(leaf)
    sizes = dict(zip(axes, shape, strict=True))
    # NumPy copies and transposes integers several times faster than bfloat16, which is not one of its own dtypes.
    stored = np.dtype(f"u{dtype.itemsize}")
    wanted = [
        {axis: range(*cut.indices(sizes[axis])) for axis, cut in zip(axes, index, strict=True)} for index in indexes
    ]
    parts = [aligned(tuple(map(len, ranges.values())), stored) for ranges in wanted]
    for source, place in placed:
        by_rows: dict[tuple[range, ...], list[_Target]] = {}
        for part, ranges in zip(parts, wanted, strict=True):
            if place.layer is None:
                target = _Target(part, axes, ranges)
            elif place.layer in ranges["l"]:
                target = _Target(part[place.layer - ranges["l"].start], axes[1:], ranges)
            else:
                continue
            rows = tuple(ranges[axis] for axis in _leaf_axes(groups_of(place.slot.layout)[0]))
            by_rows.setdefault(rows, []).append(target)
        for targets in by_rows.values():
            _fill_from(source, place, form, dtype, targets, sizes)
    return [part.view(dtype) for part in parts]


class _Target(NamedTuple):
    """The destination of a tensor in one part: its array, that array's axes, and the part's range of every axis."""

    array: np.ndarray
    axes: str
    wanted: Mapping[str, range]


def _fill_from(
    source: Source,
    place: Place,
    form: Format,
    dtype: np.dtype,
    targets: Sequence[_Target],
    sizes: Mapping[str, int],
) -> None:
    """Copies from one source to targets that want the same rows."""
    groups = groups_of(place.slot.layout)
    numbers = _numbers(groups[0], sizes, targets[0].wanted)
    rows_at, rows = _inside(numbers, source, 0)
    columns = []
    for target in targets:
        # The axes of a group are adjacent in the leaf, so this is a view. A vector is a matrix of one column.
        order = [target.axes.index(axis) for group in groups for axis in _leaf_axes(group)]
        target_rc = target.array.transpose(order).reshape(len(numbers), -1, copy=False)
        one = np.arange(1)
        at, picked = _inside(_numbers(groups[1], sizes, target.wanted), source, 1) if len(groups) > 1 else (one, one)
        if len(picked):
            columns.append((target_rc, _indexer(at), _indexer(picked)))
    if not len(rows) or not columns:
        return
    # Interleaving permutes the rows within a head, so only whole heads are contiguous in the file.
    together = len(numbers) // len(targets[0].wanted[groups[0][0]])
    for start, stop in chunks(len(rows), source.shape[1:], together):
        chosen, at = rows[start:stop], _indexer(rows_at[start:stop])
        first = int(chosen.min())
        decoded = form.decode(source, first, int(chosen.max()) + 1)[_indexer(chosen - first)]
        for target_rc, put, pick in columns:
            numbers_rc = rounded(decoded[:, pick], dtype, f"{source.file}: tensor {source.name}")
            target_rc[at, put] = numbers_rc.view(target_rc.dtype)


def _leaf_axes(group: str) -> str:
    return group.replace("ic", "h")


def _numbers(group: str, sizes: Mapping[str, int], wanted: Mapping[str, range]) -> np.ndarray:
    """Returns the indices of the rows (or columns) of a tensor that a part wants, in the part's order."""
    axes = _leaf_axes(group)
    shape = [sizes[axis] for axis in axes]
    numbers = np.arange(math.prod(shape))
    if group != axes:
        numbers = numbers.reshape(*shape[:-1], shape[-1] // 2, 2).swapaxes(-1, -2)
    return numbers.reshape(shape)[tuple(slice(wanted[axis].start, wanted[axis].stop) for axis in axes)].ravel()


def _inside(numbers: np.ndarray, source: Source, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the positions in `numbers` of rows (or columns) that a source holds, and their indices in the source."""
    size = source.shape[axis]
    part = source.part if source.part and source.part.axis == axis else Part(axis, 0, size)
    wanted = np.flatnonzero((numbers >= part.start) & (numbers < part.start + size))
    return wanted, numbers[wanted] - part.start


def _indexer(numbers: np.ndarray) -> slice | np.ndarray:
    """Returns a slice if the indices are consecutive, because NumPy copies slices several times faster."""
    first, count = int(numbers[0]), len(numbers)
    if np.array_equal(numbers, np.arange(first, first + count)):
        return slice(first, first + count)
    return numbers


def chunks(rows: int, row_shape: tuple[int, ...], multiple: int = 1) -> Iterator[tuple[int, int]]:
    """Yields ranges of rows of about `_CHUNK_BYTES` in float32. All but the last have a multiple of `multiple` rows."""
    row_bytes = max(1, 4 * math.prod(row_shape))
    step = max(1, _CHUNK_BYTES // (row_bytes * multiple)) * multiple
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Returns an uninitialized array in memory that the CPU backend uses without a copy."""
    nbytes = math.prod(shape) * dtype.itemsize
    buffer = np.empty(nbytes + _ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % _ALIGNMENT
    return buffer[start : start + nbytes].view(dtype).reshape(shape)

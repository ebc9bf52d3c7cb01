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

from aligner_jax.errors import InputError
from aligner_jax.weights.finite import all_finite
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
    indexes: Sequence[Sequence[slice]],
) -> list[np.ndarray]:
    """Parts of a leaf, each in memory that the CPU backend takes without a copy.

    Parts that want other columns of the same rows are filled together, so that no row is read or decoded twice.

    Args:
      shape: of the whole leaf.
      placed: every tensor, or part of one, that the leaf is made of.
      dtype: of the result; rounding is to nearest even.
      indexes: of each part, a slice of every axis.

    Raises:
      InputError: a file ends before its tensors do, or holds a number that is not finite, or is not in `dtype`.
    """
    axes = axes_of(leaf)
    sizes = dict(zip(axes, shape, strict=True))
    # NumPy copies and transposes its own integers several times faster than a bfloat16 it knows nothing of.
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
    """Where a tensor goes in one part: an array with these axes, and what the part wants of every axis."""

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
    """Copies what the targets, which want the same rows, want of one source."""
    groups = groups_of(place.slot.layout)
    numbers = _numbers(groups[0], sizes, targets[0].wanted)
    rows_at, rows = _inside(numbers, source, 0)
    columns = []
    for target in targets:
        # The letters of a group are neighbours in the leaf, so this is a view. A vector is a matrix of one column.
        order = [target.axes.index(axis) for group in groups for axis in _leaf_axes(group)]
        target_rc = target.array.transpose(order).reshape(len(numbers), -1, copy=False)
        one = np.arange(1)
        at, picked = _inside(_numbers(groups[1], sizes, target.wanted), source, 1) if len(groups) > 1 else (one, one)
        if len(picked):
            columns.append((target_rc, _indexer(at), _indexer(picked)))
    if not len(rows) or not columns:
        return
    # Rows of a head that are interleaved lie in one range of the file only together.
    together = len(numbers) // len(targets[0].wanted[groups[0][0]])
    for start, stop in chunks(len(rows), source.shape[1:], together):
        chosen, at = rows[start:stop], _indexer(rows_at[start:stop])
        first = int(chosen.min())
        decoded = form.decode(source, first, int(chosen.max()) + 1)[_indexer(chosen - first)]
        for target_rc, put, pick in columns:
            # Beyond the largest bfloat16 a float32 is rounded to infinity.
            with np.errstate(over="ignore"):
                rounded = decoded[:, pick].astype(dtype, copy=False)
            if rounded.dtype != decoded.dtype and not all_finite(rounded):
                raise InputError(
                    f"{source.file}: tensor {source.name} holds numbers that {dtype} cannot hold; load it in float32"
                )
            target_rc[at, put] = rounded.view(target_rc.dtype)


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


def aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array that is not filled yet, in memory that the CPU backend takes without a copy."""
    nbytes = math.prod(shape) * dtype.itemsize
    buffer = np.empty(nbytes + _ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % _ALIGNMENT
    return buffer[start : start + nbytes].view(dtype).reshape(shape)

"""Trained arrays in few bytes: as bfloat16, or as integers with scales, which can have a Huffman code.

The format is described in docs/adapter_files.md.
"""

import itertools
import math
import zlib
from collections.abc import Mapping
from typing import Literal, NamedTuple, get_args

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int8

from aligner_jax.errors import InputError
from aligner_jax.peft.adapter import Adapter
from aligner_jax.weights.finite import check_finite
from aligner_jax.weights.finite import rounded as as_dtype

type AdapterDtype = Literal["float32", "bfloat16", "int8", "int4", "coded"]

DTYPES: tuple[str, ...] = get_args(AdapterDtype.__value__)
COMPACT = DTYPES[1:]
"""Dtypes of packed arrays; float32 arrays are not packed."""

_BFLOAT16 = np.dtype(jnp.bfloat16)
_LARGEST = {"int8": 127, "int4": 7, "coded": 127}
_GROUP = 32
"""Numbers of a row that share a scale in int4."""
_STEPS = 3
"""Steps of a coded array in the root mean square of its numbers."""
_OWN_SCALES = "lprv"
"""Axes (letters of model/llama.py) whose every index has scales of its own in int8 and int4: layers, tokens, ranks."""
_MOST_PER_BYTE = 8
"""Numbers in a byte of a Huffman code, whose codewords have at least one bit."""


class Rounded(NamedTuple):
    """An adapter that was rounded.

    Attributes:
      adapter: the adapter that a file of this dtype loads.
      nbytes: bytes of its arrays in the file, without the header.
    """

    adapter: Adapter
    nbytes: int


def rounded(adapter: Adapter, dtype: AdapterDtype) -> Rounded:
    """Returns the adapter that is loaded after `save_adapter(adapter, path, dtype=dtype)`, and its size there.

    Args:
      adapter: an adapter of any method.
      dtype: one of `DTYPES`; "float32" returns the adapter itself.

    Raises:
      InputError: the dtype is unknown, or an array has numbers that are not finite or too large for it.
    """
    arrays = {name: np.asarray(x) for name, x in adapter.trainable.items()}
    check_dtype(dtype)
    if dtype == "float32":
        return Rounded(adapter, sum(x.nbytes for x in arrays.values()))
    content = pack(arrays, dtype)
    loaded = unpack(content, {name: x.shape for name, x in arrays.items()}, dtype, "this adapter")
    return Rounded(adapter.replace(trainable={name: jnp.asarray(loaded[name]) for name in arrays}), len(content))


def check_dtype(dtype: str) -> None:
    """Raises InputError unless the dtype is one of `DTYPES`."""
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} of an adapter's file is not one of {', '.join(DTYPES)}")


def pack(arrays: Mapping[str, np.ndarray], dtype: str) -> bytes:
    """Returns arrays as bytes, in the order of their names: all scales, then all values.

    Args:
      arrays: floating-point arrays by name. A name ends in the letters of the axes, as those of `Method.shapes`.
      dtype: one of `COMPACT`.

    Raises:
      InputError: an array has numbers that are not finite, or too large for bfloat16.
    """
    scales, values = [np.zeros(0, _BFLOAT16)], [np.zeros(0, np.int8)]
    for name, array in sorted(arrays.items()):
        numbers = np.asarray(array, np.float32)
        check_finite(numbers, name)
        if dtype == "bfloat16":
            scales.append(as_dtype(numbers, _BFLOAT16, name).reshape(-1))
            continue
        rows = _Rows.of(name, numbers.shape, dtype)
        own, quantized = _quantize(rows.split(numbers), rows.group, dtype)
        scales.append(own.reshape(-1))
        values.append(quantized.reshape(-1))
    return np.concatenate(scales).tobytes() + _encode(np.concatenate(values), dtype)


def unpack(
    content: bytes, shapes: Mapping[str, tuple[int, ...]], dtype: str, what: str
) -> dict[str, Float32[np.ndarray, "..."]]:
    """Returns the arrays that `pack` made bytes of, as float32.

    Memory is in proportion to the content, of any shapes: these are checked against its length first.

    Args:
      content: what `pack` returned.
      shapes: shapes of the arrays by name.
      dtype: one of `COMPACT`.
      what: the file; errors begin with it.

    Raises:
      InputError: the content is not of these shapes, is no Huffman code, or holds numbers that are not finite.
    """
    names = sorted(shapes)
    rows = {name: _Rows.of(name, shapes[name], dtype) for name in names}
    counts = [0 if dtype == "bfloat16" else math.prod(shapes[name]) for name in names]
    num_scales = [math.prod(shapes[name]) if dtype == "bfloat16" else rows[name].num_scales for name in names]
    start = _BFLOAT16.itemsize * sum(num_scales)
    values = _decode(content, start, sum(counts), dtype, what)
    scales = np.frombuffer(content, _BFLOAT16, sum(num_scales)).astype(np.float32)
    arrays = {}
    for name, scale, value in zip(names, _split(scales, num_scales), _split(values, counts), strict=True):
        with np.errstate(invalid="ignore", over="ignore"):
            numbers = scale.reshape(shapes[name]) if dtype == "bfloat16" else rows[name].joined(value, scale)
        check_finite(numbers, f"{what}: tensor {name!r}")
        arrays[name] = numbers
    return arrays


class _Rows(NamedTuple):
    """Arrangement of an array as rows, each of which has one scale for every `group` of its numbers."""

    order: tuple[int, ...]
    shape: tuple[int, ...]
    num_rows: int
    width: int
    group: int

    @classmethod
    def of(cls, name: str, shape: tuple[int, ...], dtype: str) -> "_Rows":
        axes = name.rpartition("_")[2]
        own = (
            set()
            if dtype == "coded" or len(axes) != len(shape)
            else {i for i, x in enumerate(axes) if x in _OWN_SCALES}
        )
        order = tuple(sorted(range(len(shape)), key=lambda i: i not in own))
        width = math.prod(size for i, size in enumerate(shape) if i not in own)
        num_rows = math.prod(shape[i] for i in own)
        return cls(order, tuple(shape[i] for i in order), num_rows, width, _GROUP if dtype == "int4" else max(1, width))

    @property
    def num_scales(self) -> int:
        return self.num_rows * -(-self.width // self.group)

    def split(self, numbers: np.ndarray) -> np.ndarray:
        return numbers.transpose(self.order).reshape(self.num_rows, self.width)

    def joined(self, values: np.ndarray, scales: np.ndarray) -> np.ndarray:
        spread = np.repeat(scales.reshape(self.num_rows, -1), self.group, axis=1)[:, : self.width]
        numbers = values.reshape(self.num_rows, self.width).astype(np.float32) * spread
        return np.ascontiguousarray(numbers.reshape(self.shape).transpose(np.argsort(self.order)))


def _quantize(rows: np.ndarray, group: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns scales [rows, groups] and integers in the shape of the rows."""
    if not rows.size:
        return np.zeros(0, _BFLOAT16), np.zeros(0, np.int8)
    starts = range(0, rows.shape[1], group)
    scales = np.maximum.reduceat(np.abs(rows), starts, axis=1) / _LARGEST[dtype]
    if dtype == "coded":
        scales = np.maximum(scales, np.float32(math.sqrt(np.mean(np.square(rows, dtype=np.float64))) / _STEPS))
    scales = scales.astype(_BFLOAT16)
    spread = np.repeat(scales.astype(np.float32), group, axis=1)[:, : rows.shape[1]]
    # The scale of the smallest numbers underflows to 0.
    steps = np.divide(rows, spread, out=np.zeros_like(rows), where=spread > 0)
    return scales, np.clip(np.rint(steps), -_LARGEST[dtype], _LARGEST[dtype]).astype(np.int8)


def _encode(values: Int8[np.ndarray, " n"], dtype: str) -> bytes:
    if dtype == "coded":
        # Values of trained arrays do not repeat: matches cost more bits than the Huffman code alone.
        deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_HUFFMAN_ONLY)
        return deflate.compress(values.tobytes()) + deflate.flush()
    if dtype != "int4":
        return values.tobytes()
    nibbles = np.pad((values + 8).astype(np.uint8), (0, len(values) % 2))
    return (nibbles[0::2] | nibbles[1::2] << 4).tobytes()


def _decode(content: bytes, start: int, count: int, dtype: str, what: str) -> Int8[np.ndarray, " n"]:
    """Returns `count` integers, which begin at byte `start` of the content."""
    length, coded = len(content) - start, dtype == "coded"
    wanted = -(-count // 2) if dtype == "int4" else count
    if length < 0 or (count > _MOST_PER_BYTE * length if coded else length != wanted):
        raise InputError(f"{what}: its shapes are of another number of {dtype} numbers than its {len(content):,} bytes")
    values = content[start:]
    if coded:
        values = _inflate(values, count, what)
    found = np.frombuffer(values, np.int8 if dtype != "int4" else np.uint8)
    if dtype != "int4":
        return found
    nibbles = np.stack([found & 15, found >> 4], axis=1).reshape(-1)
    if nibbles[count:].any():
        raise InputError(f"{what}: its last byte has more than the last number: it is damaged")
    return nibbles[:count].astype(np.int8) - np.int8(8)


def _inflate(values: bytes, count: int, what: str) -> bytes:
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        found = inflate.decompress(values, count + 1)
    except zlib.error:
        found = b""
    if len(found) != count or not inflate.eof or inflate.unused_data:
        raise InputError(f"{what}: its code is not that of {count:,} numbers: it is damaged")
    return found


def _split(numbers: np.ndarray, counts: list[int]) -> list[np.ndarray]:
    ends = list(itertools.accumulate(counts))
    return [numbers[end - count : end] for end, count in zip(ends, counts, strict=True)]

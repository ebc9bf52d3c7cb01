"""Trained arrays in few bytes: as bfloat16, or as integers with scales, which can have a Huffman code.

The format is described in docs/adapter_files.md.
"""

import math
import zlib
from collections.abc import Mapping
from typing import Literal, NamedTuple, get_args

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int8, UInt8

from aligner_jax.errors import InputError
from aligner_jax.peft.adapter import Adapter
from aligner_jax.weights.finite import check_finite
from aligner_jax.weights.finite import rounded as as_dtype

type AdapterDtype = Literal["float32", "bfloat16", "int8", "int4", "coded"]

DTYPES: tuple[AdapterDtype, ...] = get_args(AdapterDtype.__value__)
COMPACT = DTYPES[1:]
"""Dtypes of packed arrays; float32 arrays are not packed."""

_BFLOAT16 = np.dtype(jnp.bfloat16)
_LARGEST = {"int8": 127, "int4": 7, "coded": 127}
_GROUP = 32
"""Numbers of a row that share a scale in int4."""
_STEPS = 4
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
    scales, values = [], []
    for name, array in sorted(arrays.items()):
        numbers = np.asarray(array, np.float32)
        check_finite(numbers, name)
        if dtype == "bfloat16":
            scales.append(as_dtype(numbers, _BFLOAT16, name).tobytes())
            continue
        kind = _kind(name, dtype)
        own, quantized = _quantize(numbers, _Rows.of(name, numbers.shape, kind), kind)
        scales.append(own.tobytes())
        values.append((_nibbles(quantized) if kind == "int4" else quantized).tobytes())
    content = b"".join(values)
    return b"".join(scales) + (_deflate(content) if dtype == "coded" else content)


def unpack(
    content: bytes, shapes: Mapping[str, tuple[int, ...]], dtype: str, what: str
) -> dict[str, Float32[np.ndarray, "..."]]:
    """Returns the arrays that `pack` made bytes of, as float32.

    Memory is in proportion to the content, of any shapes: these are checked against its length first.

    Args:
      content: what `pack` returned.
      shapes: shapes of the arrays by name, without a size of 0 if they are not trusted.
      dtype: one of `COMPACT`.
      what: the file; errors begin with it.

    Raises:
      InputError: the content is not of these shapes, is no Huffman code, or holds numbers that are not finite.
    """
    parts = [_Part.of(name, shape, dtype) for name, shape in sorted(shapes.items())]
    end_of_scales = sum(part.scale_bytes for part in parts)
    wanted, given = sum(part.value_bytes for part in parts), len(content) - end_of_scales
    if given < 0 or (wanted > _MOST_PER_BYTE * given if dtype == "coded" else wanted != given):
        raise InputError(f"{what}: its shapes are of another number of {dtype} numbers than its {len(content):,} bytes")
    values = content[end_of_scales:]
    if dtype == "coded":
        values = _inflate(values, wanted, what)
    arrays, scale_at, value_at = {}, 0, 0
    for part in parts:
        scales = np.frombuffer(content, _BFLOAT16, part.scale_bytes // _BFLOAT16.itemsize, scale_at)
        stored = values[value_at : value_at + part.value_bytes]
        scale_at, value_at = scale_at + part.scale_bytes, value_at + part.value_bytes
        with np.errstate(invalid="ignore", over="ignore"):
            arrays[part.name] = part.array(scales, stored, what)
        check_finite(arrays[part.name], f"{what}: tensor {part.name!r}")
    return arrays


class _Part(NamedTuple):
    """An array among the packed ones, and the bytes that it has."""

    name: str
    shape: tuple[int, ...]
    kind: str
    scale_bytes: int
    value_bytes: int

    @classmethod
    def of(cls, name: str, shape: tuple[int, ...], dtype: str) -> "_Part":
        kind, count = _kind(name, dtype), math.prod(shape)
        if kind == "bfloat16":
            return cls(name, shape, kind, count * _BFLOAT16.itemsize, 0)
        scales = math.prod(_Rows.of(name, shape, kind).scales_shape)
        return cls(name, shape, kind, scales * _BFLOAT16.itemsize, -(-count // 2) if kind == "int4" else count)

    def array(self, scales: np.ndarray, stored: bytes, what: str) -> np.ndarray:
        if self.kind == "bfloat16":
            return scales.astype(np.float32).reshape(self.shape)
        values = np.frombuffer(stored, np.int8)
        if self.kind == "int4":
            count = math.prod(self.shape)
            nibbles = _from_nibbles(values.view(np.uint8))
            if np.any(nibbles[count:] != -8):
                raise InputError(f"{what}: tensor {self.name!r} goes on after its last number: it is damaged")
            values = nibbles[:count]
        return _Rows.of(self.name, self.shape, self.kind).joined(values, scales)


def _kind(name: str, dtype: str) -> str:
    """Returns the dtype of an array in a file of `dtype`."""
    # Rounding the gates of an Aligner of one token to int4 costs more loss than rounding all the rest.
    return "int8" if dtype == "int4" and name.rpartition("/")[2].startswith("gates") else dtype


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
        has_own = dtype != "coded" and len(axes) == len(shape)
        own = [i for i in range(len(shape)) if has_own and axes[i] in _OWN_SCALES]
        order = (*own, *(i for i in range(len(shape)) if i not in own))
        num_rows = math.prod(shape[i] for i in own)
        width = math.prod(shape[i] for i in order[len(own) :])
        return cls(order, tuple(shape[i] for i in order), num_rows, width, _GROUP if dtype == "int4" else max(1, width))

    @property
    def scales_shape(self) -> tuple[int, int]:
        return self.num_rows, -(-self.width // self.group)

    def split(self, numbers: np.ndarray) -> np.ndarray:
        """Returns an array as rows."""
        return numbers.transpose(self.order).reshape(self.num_rows, self.width)

    def spread(self, scales: np.ndarray) -> np.ndarray:
        """Returns the scale of every number of the rows."""
        return np.repeat(scales.reshape(self.scales_shape).astype(np.float32), self.group, axis=1)[:, : self.width]

    def joined(self, values: np.ndarray, scales: np.ndarray) -> np.ndarray:
        """Returns the array of integers in rows and their scales."""
        numbers = values.reshape(self.num_rows, self.width).astype(np.float32) * self.spread(scales)
        return np.ascontiguousarray(numbers.reshape(self.shape).transpose(np.argsort(self.order)))


def _quantize(numbers: np.ndarray, rows: _Rows, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the scales of an array and its integers, both flat."""
    if not numbers.size:
        return np.zeros(0, _BFLOAT16), np.zeros(0, np.int8)
    split, largest = rows.split(numbers), _LARGEST[dtype]
    scales = np.maximum.reduceat(np.abs(split), range(0, rows.width, rows.group), axis=1) / np.float32(largest)
    if dtype == "coded":
        scales = np.maximum(scales, np.float32(math.sqrt(np.mean(np.square(split, dtype=np.float64))) / _STEPS))
    scales = scales.astype(_BFLOAT16)
    spread = rows.spread(scales)
    # The scale of the smallest numbers underflows to 0.
    steps = np.divide(split, spread, out=np.zeros_like(split), where=spread > 0)
    return scales.reshape(-1), np.clip(np.rint(steps), -largest, largest).astype(np.int8).reshape(-1)


def _nibbles(values: Int8[np.ndarray, " n"]) -> np.ndarray:
    """Returns two numbers from -8 to 7 a byte, the first one in the lower bits; the last byte may have one."""
    pairs = np.pad((values + 8).astype(np.uint8), (0, len(values) % 2))
    return pairs[0::2] | pairs[1::2] << 4


def _from_nibbles(stored: UInt8[np.ndarray, " b"]) -> Int8[np.ndarray, " n"]:
    return np.stack([stored & 15, stored >> 4], axis=1).reshape(-1).astype(np.int8) - np.int8(8)


def _deflate(content: bytes) -> bytes:
    # Numbers of trained arrays do not repeat: matches would cost more bits than the Huffman code alone.
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_HUFFMAN_ONLY)
    return deflate.compress(content) + deflate.flush()


def _inflate(content: bytes, count: int, what: str) -> bytes:
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        found = inflate.decompress(content, count + 1)
    except zlib.error:
        found = b""
    if len(found) != count or not inflate.eof or inflate.unused_data:
        raise InputError(f"{what}: its code is not that of {count:,} numbers: it is damaged")
    return found

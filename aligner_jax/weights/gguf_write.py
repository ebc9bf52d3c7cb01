"""Writes GGUF files tensor by tensor, in chunks, so that memory never holds more than a tensor."""

import dataclasses
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import quantize

from aligner_jax.data.gguf_metadata import GGUFHeader
from aligner_jax.errors import InputError
from aligner_jax.files.content import MEBIBYTE, open_file
from aligner_jax.weights.finite import all_finite
from aligner_jax.weights.source import Source

type Kind = GGMLQuantizationType

KINDS = {
    "float32": GGMLQuantizationType.F32,
    "float16": GGMLQuantizationType.F16,
    "bfloat16": GGMLQuantizationType.BF16,
    "q8_0": GGMLQuantizationType.Q8_0,
}
"""Types that are written, by the names of the flag --dtype."""

_CHUNK_BYTES = 4 * MEBIBYTE
_COUNTS = "<4sIQQ"


class GGUFTensor(NamedTuple):
    """A tensor that is to be written.

    Attributes:
      name: name in the file.
      shape: shape in NumPy's order, slowest axis first.
      kind: ggml type.
      chunks: returns its bytes in the file, as consecutive arrays of uint8.
    """

    name: str
    shape: tuple[int, ...]
    kind: Kind
    chunks: Callable[[], Iterable[np.ndarray]]

    @property
    def nbytes(self) -> int:
        """Number of bytes in the file."""
        block, block_bytes = GGML_QUANT_SIZES[self.kind]
        return int(np.prod(self.shape, dtype=np.int64)) // block * block_bytes


@dataclasses.dataclass(frozen=True)
class Metadata:
    """Metadata of a GGUF file as its bytes.

    Attributes:
      content: the fields.
      num_fields: number of fields.
      alignment: tensors begin at multiples of it, in bytes.
      version: version of the file.
    """

    content: bytes
    num_fields: int
    alignment: int = 32
    version: int = 3


def copied_metadata(path: Path, header: GGUFHeader) -> Metadata:
    """Returns the metadata of a file, byte for byte.

    Raises:
      InputError: the file cannot be read.
    """
    with open_file(path) as file:
        start = file.read(header.table_offset)
    size = struct.calcsize(_COUNTS)
    _, version, _, num_fields = struct.unpack(_COUNTS, start[:size])
    return Metadata(start[size:], num_fields, header.alignment, version)


def copied_tensor(source: Source) -> GGUFTensor:
    """Returns a tensor with the bytes of another file's."""

    def chunks() -> Iterator[np.ndarray]:
        rows = source.shape[0]
        step = max(1, _CHUNK_BYTES // max(1, source.nbytes // rows))
        for start in range(0, rows, step):
            yield source.read(start, min(start + step, rows))

    return GGUFTensor(source.name, source.shape, GGMLQuantizationType[source.encoding], chunks)


def kind_for(wanted: Kind, shape: tuple[int, ...]) -> Kind:
    """Returns the type of a tensor, by the rules of llama.cpp's converter.

    Vectors are F32, as llama.cpp's additions and norms need them. Rows that blocks do not divide are F16.
    """
    if len(shape) == 1:
        return GGMLQuantizationType.F32
    return GGMLQuantizationType.F16 if shape[-1] % GGML_QUANT_SIZES[wanted][0] else wanted


def encoded(numbers: np.ndarray, kind: Kind, name: str) -> Iterator[np.ndarray]:
    """Yields the bytes of a float32 tensor of one or two axes in a type of `KINDS`, rounded once.

    Raises:
      InputError: a value is beyond the type's range; the message names the tensor.
    """
    rows = numbers.reshape(1, -1) if numbers.ndim == 1 else numbers
    step = max(1, _CHUNK_BYTES // max(1, rows[:1].nbytes))
    for start in range(0, len(rows), step):
        yield _encode(rows[start : start + step], kind, name)


def _encode(rows: np.ndarray, kind: Kind, name: str) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        if kind == GGMLQuantizationType.Q8_0:
            stored = quantize(rows, kind)
            block_bytes = GGML_QUANT_SIZES[kind][1]
            finite = all_finite(np.ascontiguousarray(stored.reshape(-1, block_bytes)[:, :2]).view(np.float16))
        else:
            dtype = {"F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}[kind.name]
            stored = np.ascontiguousarray(rows.astype(dtype))
            finite = all_finite(stored)
    if not finite:
        raise InputError(f"tensor {name} holds numbers that {kind.name} cannot hold: write it in float32")
    return stored.view(np.uint8)


def write_gguf(path: Path, metadata: Metadata, tensors: Sequence[GGUFTensor]) -> None:
    """Writes a file: header, metadata, tensor table, and the tensors in their order.

    Raises:
      InputError: a tensor cannot be read or encoded; see `GGUFTensor.chunks`.
    """
    table, offset = [], 0
    for tensor in tensors:
        name, axes = tensor.name.encode(), tuple(reversed(tensor.shape))
        entry = struct.pack(f"<I{len(axes)}QIQ", len(axes), *axes, int(tensor.kind), offset)
        table.append(struct.pack("<Q", len(name)) + name + entry)
        offset = _padded(offset + tensor.nbytes, metadata.alignment)
    start = struct.pack(_COUNTS, b"GGUF", metadata.version, len(tensors), metadata.num_fields)
    header = start + metadata.content + b"".join(table)
    with path.open("wb") as file:
        file.write(header.ljust(_padded(len(header), metadata.alignment), b"\0"))
        for tensor in tensors:
            written = sum(file.write(np.ascontiguousarray(chunk).data) for chunk in tensor.chunks())
            if written != tensor.nbytes:
                raise AssertionError(f"{tensor.name}: {written} bytes instead of {tensor.nbytes}")
            file.write(bytes(_padded(written, metadata.alignment) - written))
        file.flush()
        os.fsync(file.fileno())


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment

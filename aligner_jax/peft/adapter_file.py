"""Adapter files: safetensors with a digest of their content. Equal arrays and metadata have equal bytes.

Safetensors files have no checksum, so without the digest a flipped bit would go unnoticed. docs/adapter_files.md
describes the format.
"""

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import safetensors.numpy

from aligner_jax.errors import InputError
from aligner_jax.files.content import is_file
from aligner_jax.files.fields import Fields, shown
from aligner_jax.files.json_text import parse_object
from aligner_jax.peft.compact import COMPACT, pack, unpack
from aligner_jax.weights.finite import check_finite
from aligner_jax.weights.hf import FORMAT
from aligner_jax.weights.safetensors_header import read_header
from aligner_jax.weights.source import Source

VERSION, COMPACT_VERSION = "1", "2"
"""Format versions of files with a tensor for every array, and of files with packed arrays."""
DIGEST = "digest"
_ENCODINGS = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_PACKED, _PACKED_DTYPE, _PACKED_ENCODING = "packed", "uint8", "U8"
_FIELDS = (
    "format", "format_version", "method", "options", "base_config", "base_fingerprint", "base_quantization",
    "prompt_format", "canary", DIGEST,
)  # fmt: skip
FORM_FIELDS = ("dtype", "shapes")
"""Metadata of packed arrays alone."""


class AdapterHeader(NamedTuple):
    """Header of an adapter file.

    Attributes:
      metadata: metadata of the safetensors header, with the digest if there is one.
      sources: unread tensors of float32, bfloat16 or float16; or the one of packed arrays.
      shapes: shapes and dtypes of the arrays that the file loads, by name.
    """

    metadata: dict[str, str]
    sources: list[Source]
    shapes: dict[str, jax.ShapeDtypeStruct]


class AdapterFile(NamedTuple):
    """Content of an adapter file.

    Attributes:
      metadata: metadata of the safetensors header, without the digest.
      tensors: tensors as they are stored, by name: arrays of float32, bfloat16 or float16; or packed arrays.
    """

    metadata: dict[str, str]
    tensors: dict[str, np.ndarray]

    @property
    def dtype(self) -> str:
        """Dtype of packed arrays; "float32" for others, which are what they are."""
        return self.metadata.get("dtype", "float32")


def packed(content: AdapterFile, dtype: str) -> AdapterFile:
    """Returns the file with packed arrays.

    Args:
      content: a file with a tensor for every array.
      dtype: one of `compact.COMPACT`.

    Raises:
      InputError: an array has a dtype other than float32, bfloat16 and float16, or numbers that `pack` refuses.
    """
    _check_dtypes(content.tensors)
    shapes = {name: x.shape for name, x in sorted(content.tensors.items())}
    metadata = {
        **content.metadata,
        "format_version": COMPACT_VERSION,
        "dtype": dtype,
        "shapes": json.dumps(shapes, separators=(",", ":")),
    }
    return AdapterFile(metadata, {_PACKED: np.frombuffer(pack(content.tensors, dtype), np.uint8)})


def arrays_of(content: AdapterFile, path: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a file: those that are packed as float32.

    Raises:
      InputError: a value is not finite, or the packed arrays are damaged; the message begins with `path`.
    """
    if content.dtype in COMPACT:
        shapes = {name: one.shape for name, one in _packed_shapes(path, content.metadata).items()}
        return unpack(content.tensors[_PACKED].tobytes(), shapes, content.dtype, str(path))
    for name, numbers in content.tensors.items():
        check_finite(numbers, f"{path}: tensor {name!r}")
    return content.tensors


def adapter_bytes(content: AdapterFile) -> bytes:
    """Serializes an adapter file and adds its digest. Equal contents have equal bytes.

    Raises:
      InputError: a tensor has a dtype other than float32, bfloat16 and float16.
    """
    if content.dtype not in COMPACT:
        _check_dtypes(content.tensors)
    metadata = {**content.metadata, DIGEST: _digest(content.metadata, content.tensors)}
    data = safetensors.numpy.save(content.tensors, metadata)
    # The safetensors library writes the metadata in random order.
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return data[:8] + text.ljust(length) + data[8 + length :]


def read_adapter_header(path: Path) -> AdapterHeader:
    """Reads the header of an adapter file.

    Raises:
      InputError: the file does not exist, is not a complete safetensors file, or is not an adapter of this project; or
        it has unknown metadata or dtypes.
    """
    if not is_file(path):
        raise InputError(f"{path} does not exist, or is not a file")
    metadata, sources = read_header(path)
    if metadata.get("format") != "aligner_jax" or "method" not in metadata:
        raise InputError(
            f"{path} is a safetensors file, but not an adapter of this project: its metadata name no method"
        )
    version = metadata.get("format_version", "")
    if version not in (VERSION, COMPACT_VERSION):
        raise InputError(f"{path} has format version {version!r}, and this release reads up to {COMPACT_VERSION}")
    known = _FIELDS + FORM_FIELDS if version == COMPACT_VERSION else _FIELDS
    for name, text in metadata.items():
        if name not in known:
            raise InputError(
                f"{path} has metadata {name!r}, which no adapter has in format version {version}: it is damaged, or of "
                "a newer release"
            )
        # JSON can escape lone surrogates, but no UTF-8 file can hold them, and the safetensors library refuses them.
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise InputError(f"{path}: its metadata field {name!r} is not Unicode text: it is damaged")
    if version == COMPACT_VERSION:
        _check_packed(path, metadata, sources)
        return AdapterHeader(metadata, sources, _packed_shapes(path, metadata))
    for source in sources:
        FORMAT.check_encoding(source)
    dtypes = {encoding: dtype for dtype, encoding in _ENCODINGS.items()}
    shapes = {each.name: jax.ShapeDtypeStruct(each.shape, dtypes[each.encoding]) for each in sources}
    return AdapterHeader(metadata, sources, shapes)


def read_adapter_file(path: Path) -> AdapterFile:
    """Reads an adapter file and checks its digest. Files of early releases, which have none, are read too.

    Raises:
      InputError: see `read_adapter_header`; or the digest does not match.
    """
    metadata, sources, _ = read_adapter_header(path)
    tensors = {}
    for source in sources:
        # Values are checked after the digest, since damage is the better explanation of one that is not finite.
        stored = source.read().reshape(-1)
        numbers = stored if source.encoding == _PACKED_ENCODING else FORMAT.decoders[source.encoding](stored)
        tensors[source.name] = numbers.reshape(source.shape)
    recorded = metadata.pop(DIGEST, None)
    if recorded is not None and recorded != _digest(metadata, tensors):
        raise InputError(f"{path} is damaged: its content is not what its digest says; take another copy of it")
    return AdapterFile(metadata, tensors)


def _check_dtypes(tensors: Mapping[str, np.ndarray]) -> None:
    for name, numbers in tensors.items():
        if str(numbers.dtype) not in _ENCODINGS:
            raise InputError(f"{name} is of {numbers.dtype}, but an adapter's arrays are {', '.join(_ENCODINGS)}")


def _check_packed(path: Path, metadata: Mapping[str, str], sources: list[Source]) -> None:
    """Refuses a file of packed arrays that has no known dtype, or other tensors than one of bytes."""
    if (dtype := metadata.get("dtype")) not in COMPACT:
        raise InputError(
            f"{path}: its metadata field 'dtype' is {shown(dtype)}, but should be one of {', '.join(COMPACT)}"
        )
    if [(each.name, each.encoding, len(each.shape)) for each in sources] != [(_PACKED, _PACKED_ENCODING, 1)]:
        raise InputError(f"{path} is of format version 2, but its tensors are not one of bytes, {_PACKED!r}")


def _packed_shapes(path: Path, metadata: Mapping[str, str]) -> dict[str, jax.ShapeDtypeStruct]:
    what = "its metadata field 'shapes'"
    fields = Fields(parse_object(metadata.get("shapes", ""), f"{path}: {what}"), path, prefix=f"{what}: ")
    shapes = {name: tuple(fields.integers(name, most=2**40)) for name in fields.values}
    for name, shape in shapes.items():
        if len(shape) > 8:
            raise fields.error(name, "has more than 8 axes")
    return {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}


def _digest(metadata: Mapping[str, str], tensors: Mapping[str, np.ndarray]) -> str:
    """Returns the SHA-256 of metadata, names, dtypes and shapes (as sorted JSON), then the tensors sorted by name."""
    encodings = {**_ENCODINGS, _PACKED_DTYPE: _PACKED_ENCODING}
    described = {name: [encodings[str(x.dtype)], list(x.shape)] for name, x in tensors.items()}
    text = json.dumps([dict(metadata), described], sort_keys=True, separators=(",", ":"))
    sha256 = hashlib.sha256(text.encode())
    for _, numbers in sorted(tensors.items()):
        sha256.update(np.ascontiguousarray(numbers).reshape(-1).view(np.uint8))
    return sha256.hexdigest()

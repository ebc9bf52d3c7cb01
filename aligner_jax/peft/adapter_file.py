"""Adapter files: safetensors with a digest of their content. Equal arrays and metadata have equal bytes.

Safetensors files have no checksum, so without the digest a flipped bit would go unnoticed.
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
from aligner_jax.weights.finite import check_finite
from aligner_jax.weights.hf import FORMAT
from aligner_jax.weights.safetensors_header import read_header
from aligner_jax.weights.source import Source

FORMAT_VERSION = 1
DIGEST = "digest"
_ENCODINGS = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_FIELDS = (
    "format", "format_version", "method", "options", "base_config", "base_fingerprint", "base_quantization",
    "prompt_format", "canary", DIGEST,
)  # fmt: skip


class AdapterHeader(NamedTuple):
    """Header of an adapter file.

    Attributes:
      metadata: metadata of the safetensors header, with the digest if there is one.
      sources: unread tensors of float32, bfloat16 or float16.
    """

    metadata: dict[str, str]
    sources: list[Source]

    @property
    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of the tensors, by name."""
        dtypes = {encoding: dtype for dtype, encoding in _ENCODINGS.items()}
        return {each.name: jax.ShapeDtypeStruct(each.shape, dtypes[each.encoding]) for each in self.sources}


class AdapterFile(NamedTuple):
    """Content of an adapter file.

    Attributes:
      metadata: metadata of the safetensors header, without the digest.
      tensors: finite arrays by name, float32, bfloat16 or float16.
    """

    metadata: dict[str, str]
    tensors: dict[str, np.ndarray]


def adapter_bytes(content: AdapterFile) -> bytes:
    """Serializes an adapter file and adds its digest. Equal contents have equal bytes.

    Raises:
      InputError: a tensor has a dtype other than float32, bfloat16 and float16.
    """
    for name, numbers in content.tensors.items():
        if str(numbers.dtype) not in _ENCODINGS:
            raise InputError(f"{name} is of {numbers.dtype}, but an adapter's arrays are {', '.join(_ENCODINGS)}")
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
    if (version := metadata.get("format_version", "")) not in map(str, range(1, FORMAT_VERSION + 1)):
        raise InputError(f"{path} has format version {version!r}, and this release reads up to {FORMAT_VERSION}")
    for name, text in metadata.items():
        if name not in _FIELDS:
            raise InputError(
                f"{path} has metadata {name!r}, which no adapter has: it is damaged, or of a newer release"
            )
        # JSON can escape lone surrogates, but no UTF-8 file can hold them, and the safetensors library refuses them.
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise InputError(f"{path}: its metadata field {name!r} is not Unicode text: it is damaged")
    for source in sources:
        FORMAT.check_encoding(source)
    return AdapterHeader(metadata, sources)


def read_adapter_file(path: Path) -> AdapterFile:
    """Reads and checks an adapter file. Files of early releases, which have no digest, are read too.

    Raises:
      InputError: see `read_adapter_header`; or the digest does not match, or a value is not finite.
    """
    metadata, sources = read_adapter_header(path)
    tensors = {}
    for source in sources:
        # Values are checked after the digest, since damage is the better explanation of one that is not finite.
        numbers = FORMAT.decoders[source.encoding](source.read().reshape(-1))
        tensors[source.name] = numbers.reshape(source.shape)
    recorded = metadata.pop(DIGEST, None)
    if recorded is not None and recorded != _digest(metadata, tensors):
        raise InputError(f"{path} is damaged: its content is not what its digest says; take another copy of it")
    for name, numbers in tensors.items():
        check_finite(numbers, f"{path}: tensor {name!r}")
    return AdapterFile(metadata, tensors)


def _digest(metadata: Mapping[str, str], tensors: Mapping[str, np.ndarray]) -> str:
    """Returns the SHA-256 of metadata, names, dtypes and shapes (as sorted JSON), then the tensors sorted by name."""
    described = {name: [_ENCODINGS[str(x.dtype)], list(x.shape)] for name, x in tensors.items()}
    text = json.dumps([dict(metadata), described], sort_keys=True, separators=(",", ":"))
    sha256 = hashlib.sha256(text.encode())
    for _, numbers in sorted(tensors.items()):
        sha256.update(np.ascontiguousarray(numbers).reshape(-1).view(np.uint8))
    return sha256.hexdigest()

"""Reads the header of a safetensors file, and checks it against the format and the file.

The header is not read by the safetensors library, for two reasons: the library accepts a duplicated name and takes its
second entry; and it maps the file into memory, so that every weight counts twice in the process's memory.
"""

import itertools
import math
import os
from pathlib import Path
from typing import NamedTuple

from aligner_jax.errors import InputError
from aligner_jax.files.content import MEBIBYTE, open_file
from aligner_jax.files.fields import Fields
from aligner_jax.files.json_text import parse_object
from aligner_jax.weights.source import Source

_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "C64": 64,
    "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
"""Bits per number, by dtype. Some have no decoder: a tensor is refused for its dtype only when it is used."""
# The header of a model of 500 layers has half of this. Parsed JSON takes up to 60 times the memory of its text.
_MAX_HEADER_BYTES = MEBIBYTE


class SafetensorsFile(NamedTuple):
    """Content of a header.

    Attributes:
      metadata: texts by name, in file order.
      sources: unread tensors, in file order.
    """

    metadata: dict[str, str]
    sources: list[Source]


def safetensors_sources(path: Path) -> list[Source]:
    """Returns every tensor of a safetensors file, unread. Raises InputError; see `read_header`."""
    return read_header(path).sources


def read_header(path: Path) -> SafetensorsFile:
    """Returns the metadata and the unread tensors of a safetensors file.

    The file begins with the length of the JSON header as a little-endian uint64. The header and the data follow. The
    header's offsets are relative to the start of the data, without gaps or overlaps. Source:
    https://github.com/huggingface/safetensors#format

    Raises:
      InputError: there is no such file, it is not a whole safetensors file, or its header contradicts its data. Names
        the tensor.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(prefix, "little") if len(prefix := file.read(8)) == 8 else size
        if length > size - 8:
            raise _broken(path, "it ends inside its header")
        if length > _MAX_HEADER_BYTES:
            raise _broken(path, f"its header has {length:,} bytes, of at most {_MAX_HEADER_BYTES:,}")
        header = file.read(length)
    if header[:1] != b"{":
        raise _broken(path, "its header is no JSON object")
    try:
        text = header.decode()
    except UnicodeDecodeError:
        raise _broken(path, "its header is not UTF-8 text") from None
    fields = Fields(parse_object(text, f"{path} is not a whole safetensors file: its header"), path)
    sources = [_source(path, fields, name, 8 + length) for name in fields.values if name != "__metadata__"]
    _check_layout(path, sources, 8 + length, size)
    return SafetensorsFile(_metadata(fields), sources)


def _metadata(fields: Fields) -> dict[str, str]:
    section = fields.section("__metadata__")
    return {} if section is None else {name: section.text(name) for name in section.values}


def _source(path: Path, fields: Fields, name: str, start: int) -> Source:
    entry = fields.section(name)
    if entry is None or entry.values.keys() != {"dtype", "shape", "data_offsets"} or entry.get("shape") is None:
        raise fields.error(f"tensor {name}", "is not described by dtype, shape and data_offsets")
    entry = Fields(entry.values, path, f"tensor {name}: ")
    encoding = entry.choice("dtype", _BITS)
    shape = tuple(entry.integers("shape", least=0, most=2**48))
    offsets = entry.integers("data_offsets", least=0, most=2**60)
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise entry.error("data_offsets", "are not where it begins and where it ends")
    nbytes = offsets[1] - offsets[0]
    if len(shape) > 32 or math.prod(shape) * _BITS[encoding] != 8 * nbytes:
        raise entry.error("shape", f"and dtype {encoding} ask for another number of bytes than the {nbytes} it has")
    return Source(name, path, shape, encoding, start + offsets[0], nbytes)


def _check_layout(path: Path, sources: list[Source], start: int, size: int) -> None:
    """Raises InputError unless the tensors follow each other from `start` to the file's end."""
    ordered = sorted(sources, key=lambda source: (source.offset, source.offset + source.nbytes))
    for source, after in itertools.pairwise([None, *ordered]):
        assert after is not None
        reached = start if source is None else source.offset + source.nbytes
        if after.offset != reached:
            other = "the header" if source is None else f"tensor {source.name}"
            raise _broken(path, f"tensor {after.name} does not begin where {other} ends")
    end = ordered[-1].offset + ordered[-1].nbytes if ordered else start
    if end != size:
        raise _broken(path, f"it has {size:,} bytes, but its header speaks of {end:,}")


def _broken(path: Path, problem: str) -> InputError:
    return InputError(f"{path} is not a whole safetensors file: {problem}")

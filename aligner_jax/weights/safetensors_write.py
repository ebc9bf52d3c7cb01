"""Writes safetensors files one tensor at a time, so that memory holds a single tensor."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from aligner_jax.errors import InputError

SHARD_BYTES = 5 * 10**9
"""Most bytes of tensors in one file of a model, as Hugging Face's own writers have it."""

_NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


class Tensor(NamedTuple):
    """A tensor that is to be written.

    Attributes:
      name: name in the file.
      shape: shape in the file.
      make: returns the array, of that shape and in the file's dtype.
    """

    name: str
    shape: tuple[int, ...]
    make: Callable[[], np.ndarray]


def write_model(folder: Path, tensors: Sequence[Tensor], dtype: np.dtype, shard_bytes: int = SHARD_BYTES) -> list[str]:
    """Writes model.safetensors, or several files and their index if the tensors take more than `shard_bytes`.

    Args:
      folder: existing folder.
      tensors: tensors in the order in which they are made and written.
      dtype: dtype of all tensors.
      shard_bytes: most bytes in a file; a larger tensor has a file of its own.

    Returns:
      The names of the files.
    """
    shards: list[list[Tensor]] = [[]]
    room = shard_bytes
    for tensor in tensors:
        size = _size(tensor, dtype)
        if shards[-1] and size > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(tensor)
        room -= size
    if len(shards) == 1:
        _write(folder / "model.safetensors", shards[0], dtype)
        return ["model.safetensors"]
    names = [f"model-{at:05}-of-{len(shards):05}.safetensors" for at in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        _write(folder / name, shard, dtype)
    index = {
        "metadata": {"total_size": sum(_size(tensor, dtype) for tensor in tensors)},
        "weight_map": {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    return [*names, "model.safetensors.index.json"]


def _write(path: Path, tensors: Sequence[Tensor], dtype: np.dtype) -> None:
    header: dict[str, Mapping] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        start, end = end, end + _size(tensor, dtype)
        header[tensor.name] = {"dtype": _NAMES[str(dtype)], "shape": tensor.shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    # The data begin at a multiple of 8 bytes.
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            array = tensor.make()
            if array.shape != tensor.shape or array.dtype != dtype:
                raise InputError(
                    f"{path}: tensor {tensor.name} is {array.dtype} {array.shape}, not {dtype} {tensor.shape}"
                )
            file.write(np.ascontiguousarray(array).view(np.uint8).data)
            del array
        file.flush()
        os.fsync(file.fileno())


def _size(tensor: Tensor, dtype: np.dtype) -> int:
    return int(np.prod(tensor.shape, dtype=np.int64)) * dtype.itemsize

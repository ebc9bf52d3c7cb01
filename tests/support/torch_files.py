"""Writes files like those of `torch.save` by hand, since tests do not have torch."""

import struct
import zipfile
from pathlib import Path

import numpy as np

_STORAGES = {"float32": "FloatStorage", "float16": "HalfStorage", "bfloat16": "BFloat16Storage"}


def write_torch_file(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    """Writes a state dict; dtypes other than float16 and bfloat16 become float32."""
    stored = {name: x if x.dtype.name in _STORAGES else x.astype(np.float32) for name, x in tensors.items()}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(stored))
        for number, tensor in enumerate(stored.values()):
            archive.writestr(f"archive/data/{number}", np.ascontiguousarray(tensor).tobytes())
    return path


def pickled(tensors: dict[str, np.ndarray]) -> bytes:
    """Returns opcodes of {name: _rebuild_tensor_v2(storage i, 0, shape, strides, False, {})} in protocol 2."""
    entries = b""
    for number, (name, tensor) in enumerate(tensors.items()):
        strides = tuple(stride // tensor.itemsize for stride in np.empty(tensor.shape, tensor.dtype).strides)
        kind = f"ctorch\n{_STORAGES[tensor.dtype.name]}\n".encode()
        place = b"(" + _text("storage") + kind + _text(str(number)) + _text("cpu")
        storage = place + _number(tensor.size) + b"tQ"
        arguments = b"(" + storage + _number(0) + _numbers(tensor.shape) + _numbers(strides) + b"\x89}t"
        entries += _text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R"
    return b"\x80\x02}(" + entries + b"u."


def _text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text.encode())) + text.encode()


def _number(number: int) -> bytes:
    return b"J" + struct.pack("<i", number)


def _numbers(numbers: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(_number, numbers)) + b"t"

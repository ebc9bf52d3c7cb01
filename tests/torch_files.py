"""Files as `torch.save` writes them, by hand: tests have no torch."""

import struct
import zipfile
from pathlib import Path

import numpy as np


def write_torch_file(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    """A state dict of float32 tensors."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", _pickled(tensors))
        for number, tensor in enumerate(tensors.values()):
            archive.writestr(f"archive/data/{number}", np.ascontiguousarray(tensor, np.float32).tobytes())
    return path


def _pickled(tensors: dict[str, np.ndarray]) -> bytes:
    """{name: _rebuild_tensor_v2(storage of that number, 0, shape, strides, False, {})} in opcodes of protocol 2."""
    entries = b""
    for number, (name, tensor) in enumerate(tensors.items()):
        strides = tuple(stride // 4 for stride in np.empty(tensor.shape, np.float32).strides)
        place = b"(" + _text("storage") + b"ctorch\nFloatStorage\n" + _text(str(number)) + _text("cpu")
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

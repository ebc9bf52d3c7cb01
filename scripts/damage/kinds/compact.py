"""This project's adapter files of few bytes: packed arrays of every dtype, some without a digest."""

import random
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from aligner_jax.model.config import LlamaConfig
from aligner_jax.peft import METHODS, Adapter
from aligner_jax.peft.artifact import read_artifact, save_adapter
from aligner_jax.peft.compact import COMPACT, AdapterDtype
from scripts.damage.kinds import _safetensors, mutations
from scripts.damage.kinds.kind import Files, Kind, digest

_NAME = "adapter.safetensors"
_PACKED = "packed"
_CONFIG = LlamaConfig(40, 16, 24, 3, 4, 2, 4)
_ADAPTERS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("aligner", {"num_tokens": 1, "start_layer": 1}),
    ("llama_adapter", {"num_tokens": 2, "start_layer": 1, "gates": "layer"}),
    ("lora", {"rank": 1, "targets": ("q", "down")}),
    ("bias", {"target": "v", "start_layer": 0}),
)
_SHAPES = (0, 1, 3, 40, 2**20, 2**31, 2**40, 2**41, -1, True, 1.5, None, "4", [])
_NUMBERS = (b"\xc0\x7f", b"\x80\x7f", b"\x80\xff", b"\x7f\x7f", b"\x00\x00", b"\xff\xff")
_BOMB = 2**22


def _samples() -> list[Files]:
    rng, made = np.random.default_rng(0), []
    for method, given in _ADAPTERS:
        options = METHODS[method].options(**given)
        shapes = METHODS[method].shapes(options, _CONFIG)
        arrays: dict[str, Any] = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
        for dtype in COMPACT:
            content = _saved(Adapter(arrays, method=method, options=options), dtype)
            header, data = _safetensors.split(content)
            del header["__metadata__"]["digest"]
            made += [{_NAME: content}, {_NAME: _safetensors.joined(header, data)}]
    return made


def _saved(adapter: Adapter, dtype: AdapterDtype) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(adapter, Path(folder) / _NAME, dtype=dtype, canary=False)
        return (Path(folder) / _NAME).read_bytes()


def _mutate(rng: random.Random, files: Files) -> Files:
    content = files[_NAME]
    header, data = _safetensors.split(content)
    metadata = header["__metadata__"]
    # Without its digest the file is read further.
    if rng.randrange(4):
        metadata.pop("digest", None)
    change = rng.randrange(6)
    if change == 0:
        return {_NAME: _safetensors.mutate(rng, _safetensors.joined(header, data))}
    if change == 1:
        metadata["shapes"] = mutations.of_json(rng, metadata["shapes"].encode()).decode(errors="replace")
    elif change == 2:
        metadata["shapes"] = metadata["shapes"].replace(*_other_size(rng, metadata["shapes"]), 1)
    elif change == 3:
        metadata["dtype"] = rng.choice((*COMPACT, "float32", "int2", ""))
    else:
        data = _other_data(rng, data)
        header[_PACKED] = {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]}
    return {_NAME: _safetensors.joined(header, data)}


def _other_size(rng: random.Random, shapes: str) -> tuple[str, str]:
    sizes = [each.strip("[]{}") for each in shapes.replace(":", ",").split(",") if each.strip("[]{}").isdigit()]
    return rng.choice(sizes), str(rng.choice(_SHAPES))


def _other_data(rng: random.Random, data: bytes) -> bytes:
    change = rng.randrange(5)
    if change == 0:
        at = 2 * rng.randrange(len(data) // 2)
        return data[:at] + rng.choice(_NUMBERS) + data[at + 2 :]
    if change == 1:
        return data[: rng.randrange(len(data))]
    if change == 2:
        return data + rng.randbytes(rng.choice((1, 2, 100)))
    if change == 3:
        deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        return data[:8] + deflate.compress(bytes(rng.choice((1, 100, _BOMB)))) + deflate.flush()
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def _read(folder: Path) -> str:
    adapter = read_artifact(folder / _NAME).adapter
    arrays = {name: np.asarray(x) for name, x in sorted(adapter.trainable.items())}
    assert all(x.dtype == np.float32 and np.isfinite(x).all() for x in arrays.values())
    return digest(
        adapter.method, adapter.options, *(part for name, x in arrays.items() for part in (name, x.shape, x))
    )  # fmt: skip


def _may_differ(_: Files, damaged: Files) -> bool:
    # A file with its digest must read as it was saved.
    try:
        metadata = _safetensors.split(damaged[_NAME])[0]["__metadata__"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
    return isinstance(metadata, dict) and "digest" not in metadata


KIND = Kind("compact", _samples, _mutate, _read, _may_differ)

"""Headers of safetensors files: those of the library's own writer are read, and all invalid ones are refused."""

import json
import random
import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors
from safetensors.numpy import save, save_file

from aligner_jax.errors import InputError
from aligner_jax.weights.safetensors_header import read_header

TENSORS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.zeros((0, 4), np.float16),
    "c": np.ones((), np.int64),
    "d": np.ones(3, bool),
}


def written(path: Path, header: object, body: bytes, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + body)
    return path


def entry(**changes: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}


def test_what_the_library_writes_is_read(tmp_path: Path):
    path = tmp_path / "a.safetensors"
    save_file(TENSORS, path, {"x": "y"})
    metadata, sources = read_header(path)
    assert metadata == {"x": "y"}
    assert {source.name: source.shape for source in sources} == {name: x.shape for name, x in TENSORS.items()}
    for source in sources:
        assert path.read_bytes()[source.offset : source.offset + source.nbytes] == TENSORS[source.name].tobytes()


@pytest.mark.parametrize(
    ("header", "sentence"),
    [
        (b"[" * 100_000, "no JSON object"),
        (b'{"a":' * 50_000, "nested too deeply"),
        (b'{"a": {"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,8]}}', "too many digits"),
        (b'{"a": {"dtype":"F32"}, "a": {"dtype":"F32"}}', "'a' twice"),
        (b'{"__metadata__": {}, "__metadata__": {}}', "'__metadata__' twice"),
        (b' {"a": 1}', "no JSON object"),
        (b'{"\xff": 1}', "not UTF-8"),
        ({"a": 1}, "a is 1, not an object"),
        ({"a": None}, "tensor a is not described"),
        ({"a": {"dtype": "F32", "shape": [2]}}, "tensor a is not described"),
        ({"a": entry(more=1)}, "tensor a is not described"),
        ({"a": entry(shape=None)}, "tensor a is not described"),
        ({"a": entry(dtype="F33")}, "tensor a: dtype is 'F33', not one of"),
        ({"a": entry(dtype=["F32"])}, "tensor a: dtype is a list"),
        ({"a": entry(shape=[-2])}, "tensor a: shape is [-2], not a list of integers"),
        ({"a": entry(shape=[True, 2])}, "tensor a: shape is"),
        ({"a": entry(shape=2)}, "tensor a: shape is 2"),
        ({"a": entry(shape=[2**40, 2**40])}, "tensor a: shape and dtype F32 ask for another number"),
        ({"a": entry(shape=[3])}, "tensor a: shape and dtype F32 ask for another number"),
        ({"a": entry(dtype="F16")}, "tensor a: shape and dtype F16 ask for another number"),
        ({"a": entry(data_offsets=[8, 0])}, "tensor a: data_offsets are not"),
        ({"a": entry(data_offsets=[0])}, "tensor a: data_offsets are not"),
        ({"a": entry(data_offsets=[0.0, 8.0])}, "tensor a: data_offsets is"),
        ({"a": entry(data_offsets=[4, 12])}, "tensor a does not begin where the header ends"),
        ({"a": entry(), "b": entry()}, "tensor b does not begin where tensor a ends"),
        ({"a": entry(), "b": entry(data_offsets=[4, 12])}, "tensor b does not begin where tensor a ends"),
        ({"a": entry(shape=[1], data_offsets=[0, 4])}, "but its header speaks of"),
        ({"a": entry(shape=[4], data_offsets=[0, 16])}, "but its header speaks of"),
        ({"__metadata__": {"a": 1}, "a": entry()}, "__metadata__.a is 1, not text"),
        ({"__metadata__": ["a"], "a": entry()}, "__metadata__ is a list"),
    ],
)
def test_headers_that_are_off_are_refused(header: object, sentence: str, tmp_path: Path):
    path = written(tmp_path / "a.safetensors", header, bytes(8))
    with pytest.raises(InputError) as caught:
        read_header(path)
    assert str(path) in str(caught.value)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("length", "sentence"),
    [
        (2**63, "ends inside its header"),
        (2**64 - 1, "ends inside"),
        (60, "ends inside"),
        (2 * 2**20, "2,097,152 bytes"),
    ],
)
def test_headers_of_absurd_lengths_are_refused(length: int, sentence: str, tmp_path: Path):
    path = written(tmp_path / "a.safetensors", {}, bytes(3 * 2**20 if length == 2 * 2**20 else 8), length)
    with pytest.raises(InputError, match=f"not a whole safetensors file: .*{sentence}"):
        read_header(path)


def test_what_the_library_refuses_is_refused(tmp_path: Path):
    rng, path = random.Random(3), tmp_path / "a.safetensors"
    refused = 0
    for _ in range(600):
        data = bytearray(save({"a": TENSORS["a"], "c": TENSORS["c"]}, {"x": "y"}))
        for _ in range(rng.choice((1, 1, 2))):
            at = rng.randrange(len(data))
            match rng.randrange(3):
                case 0:
                    data[at] = rng.choice(b'0123456789[]{}",:\x00\xff F')
                case 1:
                    del data[at : at + rng.randrange(1, 4)]
                case _:
                    data[at:at] = data[at : at + rng.randrange(1, 4)]
        path.write_bytes(data)
        try:
            safetensors.deserialize(bytes(data))
        except safetensors.SafetensorError:
            refused += 1
            with pytest.raises(InputError):
                read_header(path)
    assert refused > 300

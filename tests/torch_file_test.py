"""Torch files as places of tensors: whole, partly read, and refused where they are anything else."""

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from torch_files import write_torch_file

from aligner_jax.errors import InputError
from aligner_jax.weights.torch_file import read_torch_tensors, torch_sources

TENSORS = {
    "a": np.arange(24, dtype=np.float32).reshape(6, 4),
    "b": np.arange(5).astype(np.float16),
    "c": np.arange(6).astype(ml_dtypes.bfloat16).reshape(2, 3),
    "none": np.zeros((0, 3), np.float32),
    "one": np.array(7, np.float32),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_torch_file(tmp_path / "model.pth", TENSORS)


@pytest.fixture
def rewritten(path: Path) -> Callable[..., Path]:
    """The file with `change(name, bytes)` applied to each member, and written with these options."""

    def write(change=lambda name, data: data, more: dict[str, bytes] | None = None, **options: int) -> Path:
        with zipfile.ZipFile(path) as old:
            members = {name: change(name, old.read(name)) for name in old.namelist()} | (more or {})
        with zipfile.ZipFile(path, "w", **options) as new:
            for name, data in members.items():
                new.writestr(name, data)
        return path

    return write


def test_every_tensor_comes_back(path):
    read = read_torch_tensors(path)
    assert read.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert read[name].dtype == tensor.dtype
        np.testing.assert_array_equal(read[name], tensor)


def test_a_source_is_a_range_of_the_file(path):
    source = torch_sources(path)["a"]
    assert (source.shape, source.encoding, source.nbytes) == ((6, 4), "F32", 96)
    data = path.read_bytes()
    assert data[source.offset : source.offset + source.nbytes] == TENSORS["a"].tobytes()
    np.testing.assert_array_equal(source.read(2, 4).view(np.float32), TENSORS["a"][2:4])


def test_members_may_be_padded_as_torch_does(path, tmp_path):
    """Torch fills the extra field of a member's own header, but not of the archive's table, to align its bytes."""
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(tmp_path / "padded.pth", "w") as new:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)
            info.extra = b"FB" + (20).to_bytes(2, "little") + b"Z" * 20
            new.writestr(info, data)
            info.extra = b""
    np.testing.assert_array_equal(read_torch_tensors(tmp_path / "padded.pth")["a"], TENSORS["a"])


def test_a_modules_state_dict_has_attributes_that_are_ignored(rewritten):
    """An OrderedDict of {} with the attribute _metadata, as a module's state_dict() is pickled; then the same keys."""

    def with_attributes(name: str, data: bytes) -> bytes:
        if not name.endswith("data.pkl"):
            return data
        made, rest = b"ccollections\nOrderedDict\n)R", data.removeprefix(b"\x80\x02}").removesuffix(b".")
        return b"\x80\x02" + made + rest + b"}X\x09\x00\x00\x00_metadata}sb."

    np.testing.assert_array_equal(read_torch_tensors(rewritten(with_attributes))["a"], TENSORS["a"])


def test_compressed_members_are_refused(rewritten):
    path = rewritten(compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(
        InputError, match=r"model\.pth: its member archive/data\.pkl is compressed, as torch never writes"
    ):
        torch_sources(path)


def test_another_byte_order_is_refused(rewritten):
    assert torch_sources(rewritten(more={"archive/byteorder": b"little"})).keys() == TENSORS.keys()
    with pytest.raises(InputError, match=r"model\.pth is of a machine with another byte order"):
        torch_sources(rewritten(more={"archive/byteorder": b"big"}))


def test_a_member_that_was_changed_is_refused(path):
    source = torch_sources(path)["a"]
    data = bytearray(path.read_bytes())
    data[source.offset] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        InputError, match=r"model\.pth is damaged: its member archive/data/0 does not match its checksum"
    ):
        read_torch_tensors(path)


def test_a_bare_pickle_is_refused_and_not_run(tmp_path, capsys):
    class Evil:
        def __reduce__(self):
            return print, ("this must never be printed",)

    (tmp_path / "old.pth").write_bytes(pickle.dumps({"a": Evil()}))
    with pytest.raises(InputError, match=r"old\.pth is not a torch file: it is a pickle without an archive"):
        torch_sources(tmp_path / "old.pth")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (b"J\x06\x00\x00\x00", b"J\xff\xff\xff\xff", "tensor 'a' has an absurd shape or offset"),
        (b"J\x06\x00\x00\x00", b"J\x07\x00\x00\x00", r"tensor 'a' of shape \(7, 4\) needs more bytes than its storage"),
        (b"_rebuild_tensor_v2", b"_rebuild_parameter", "asks for torch._utils._rebuild_parameter, which is no tensor"),
        (b"FloatStorage", b"LongStorage", "asks for torch.LongStorage, which is no tensor"),
        (b"storage", b"starage", "refers to something that is no tensor storage"),
    ],
)
def test_what_is_no_tensor_is_refused(rewritten, old, new, sentence):
    path = rewritten(lambda name, data: data.replace(old, new, 1) if name.endswith("data.pkl") else data)
    with pytest.raises(InputError, match=rf"model\.pth:? {sentence}"):
        torch_sources(path)

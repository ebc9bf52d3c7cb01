"""Torch files as locations of tensors: read whole, read in part, and refused if they are anything else."""

import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from torch_files import pickled, write_torch_file

from aligner_jax.errors import InputError
from aligner_jax.weights.torch_file import read_torch_tensors, share_checks, torch_sources

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
    """Rewrites the file with `change(name, bytes)` applied to each member, and with these options."""

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
    """Torch aligns a member's bytes by padding the extra field of its own header, but not of the archive's table."""
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
    """A module's state_dict() is pickled as an OrderedDict of {} with the attribute _metadata, and then the keys."""

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
    sentence = r"model\.pth is damaged: its member archive/data/0 does not match its checksum"
    with pytest.raises(InputError, match=sentence):
        read_torch_tensors(path)
    # Parts may be read in any order; the checksum is checked at the last row at the latest.
    for parts in ([(0, 6)], [(0, 2), (2, 5), (5, 6)], [(3, 6), (0, 3)], [(5, 6)]):
        source = torch_sources(path)["a"]
        with pytest.raises(InputError, match=sentence):
            _ = [source.read(*rows) for rows in parts]
    np.testing.assert_array_equal(torch_sources(path)["b"].read().view(np.float16)[:, 0], TENSORS["b"])


def test_processes_share_the_checks_of_storages(path):
    whole, sources = path.read_bytes(), torch_sources(path)
    for name, source in sources.items():
        if not source.nbytes:
            continue
        data = bytearray(whole)
        data[source.offset] ^= 1
        path.write_bytes(data)
        refused = []
        for process in range(3):
            mine = torch_sources(path)
            try:
                share_checks(mine.values(), process, 3)
            except InputError:
                refused.append(process)
            else:
                mine[name].read()
        assert len(refused) == 1, name
        share_checks(torch_sources(path).values(), 0, 1)


def test_tensors_of_one_storage(rewritten):
    """Two tensors share a storage, one as a view of the other: each is checked with the whole storage."""

    def share(name: str, data: bytes) -> bytes:
        if name.endswith("data.pkl"):
            five, place = b"X\x01\x00\x00\x001", b"tQJ\x00\x00\x00\x00"
            before, after = data.split(b"ctorch\nHalfStorage\n" + five, 1)
            after = after.replace(place, b"tQJ\x10\x00\x00\x00", 1).replace(
                b"J\x05\x00\x00\x00", b"J\x18\x00\x00\x00", 1
            )
            return before + b"ctorch\nFloatStorage\nX\x01\x00\x00\x000" + after
        return data

    path = rewritten(share)
    np.testing.assert_array_equal(read_torch_tensors(path)["b"], TENSORS["a"].reshape(-1)[16:21])
    data = bytearray(path.read_bytes())
    data[torch_sources(path)["a"].offset] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match="archive/data/0 does not match its checksum"):
        torch_sources(path)["b"].read()


def test_a_storage_that_many_tensors_share_is_not_multiplied(tmp_path):
    entry = pickled({"a": TENSORS["a"]}).removeprefix(b"\x80\x02}(X\x01\x00\x00\x00a").removesuffix(b"u.")
    names = (b"X" + struct.pack("<I", 5) + f"{number:05}".encode() for number in range(200))
    with zipfile.ZipFile(tmp_path / "many.pth", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}(" + b"".join(name + entry for name in names) + b"u.")
        archive.writestr("archive/data/0", TENSORS["a"].tobytes())
    with pytest.raises(InputError, match=r"many\.pth has storages of 96 bytes that more than 128 tensors share"):
        torch_sources(tmp_path / "many.pth")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_numbers_that_are_not_finite_are_refused_by_name(tmp_path, value: float, dtype):
    tensors = TENSORS | {"bad": np.array([1, value, 2]).astype(dtype)}
    with pytest.raises(InputError, match=r"model\.pth: tensor bad holds numbers that are not finite"):
        read_torch_tensors(write_torch_file(tmp_path / "model.pth", tensors))


def test_doubles_beyond_float32_are_refused(rewritten):
    def doubled(name: str, data: bytes) -> bytes:
        if name.endswith("data.pkl"):
            return data.replace(b"FloatStorage", b"DoubleStorage")
        return np.frombuffer(data, np.float32).astype(np.float64).tobytes() if name[-1] in "034" else data

    np.testing.assert_array_equal(read_torch_tensors(rewritten(doubled))["a"], TENSORS["a"].astype(np.float64))

    def huge(name: str, data: bytes) -> bytes:
        return np.full(24, 1e300).tobytes() if name.endswith("data/0") else data

    with pytest.raises(InputError, match="tensor a holds numbers that are not finite"):
        read_torch_tensors(rewritten(huge))


def test_a_program_of_torchscript_is_refused(rewritten):
    with pytest.raises(InputError, match=r"model\.pth is a program of TorchScript; save the state_dict\(\)"):
        torch_sources(rewritten(more={"archive/constants.pkl": b"\x80\x02)."}))


def test_two_pickles_are_refused(rewritten):
    with pytest.raises(InputError, match=r"has no data\.pkl, or several"):
        torch_sources(rewritten(more={"other/data.pkl": b"\x80\x02}."}))


@pytest.mark.parametrize("how", ["folder", "missing", "pipe"])
def test_what_is_no_file_is_refused(tmp_path, how: str):
    path = tmp_path / "x.pth"
    if how == "folder":
        path.mkdir()
    elif how == "pipe":
        os.mkfifo(path)
    with pytest.raises(InputError, match=r"x\.pth"):
        torch_sources(path)


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
        (b"J\x06\x00\x00\x00", b"J\xff\xff\xff\x7f", r"tensor 'a' of shape \(2147483647, 4\) needs more bytes"),
        (b"tQJ\x00", b"tQJ\x01", r"tensor 'a' of shape \(6, 4\) needs more bytes than its storage"),
        (
            b"J\x18\x00\x00\x00t",
            b"J\x19\x00\x00\x00t",
            "the storage of tensor 'a' has 96 bytes, but 25 numbers are 100 in",
        ),
        (
            b"(J\x06\x00\x00\x00",
            b"(" + b"J\x01\x00\x00\x00" * 7 + b"J\x06\x00\x00\x00",
            "tensor 'a' has 9 dimensions, of",
        ),
        (b"X\x01\x00\x00\x000", b"X\x01\x00\x00\x009", "tensor 'a' is in a storage '9' that the file lacks"),
        (
            b"J\x04\x00\x00\x00J\x01\x00\x00\x00t",
            b"J\x01\x00\x00\x00J\x06\x00\x00\x00t",
            r"tensor 'a' is not contiguous",
        ),
        (b"_rebuild_tensor_v2", b"_rebuild_parameter", "asks for torch._utils._rebuild_parameter, which is no tensor"),
        (b"FloatStorage", b"LongStorage", "asks for torch.LongStorage, which is no tensor"),
        (b"storage", b"starage", "refers to something that is no tensor storage"),
    ],
)
def test_what_is_no_tensor_is_refused(rewritten, old, new, sentence):
    path = rewritten(lambda name, data: data.replace(old, new, 1) if name.endswith("data.pkl") else data)
    with pytest.raises(InputError, match=rf"model\.pth:? {sentence}"):
        torch_sources(path)

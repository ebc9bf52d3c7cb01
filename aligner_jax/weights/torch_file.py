"""Tensors in a file that `torch.save` wrote, without torch and without running anything the file says.

A .pth file is a zip archive of one pickle and one raw file per storage. A pickle can name any function to call; here
it gets three stand-ins that only describe tensors, and every other name is refused. The storages are not compressed,
so that a tensor is a range of bytes of the file, which can be read later, and in part.
"""

import dataclasses
import io
import math
import pickle
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from aligner_jax.errors import InputError
from aligner_jax.weights.source import Source

_ENCODINGS = {"FloatStorage": "F32", "DoubleStorage": "F64", "HalfStorage": "F16", "BFloat16Storage": "BF16"}
_DTYPES = {
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
}
# The local header of a member: a signature, 22 bytes that the archive's table repeats, two lengths, then both texts.
_LOCAL_HEADER = 30
_ENCRYPTED = 1


def read_torch_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """The named tensors of a state dict, all read, in the dtypes they are stored in.

    Raises:
      InputError: see `torch_sources`; or a member does not match its checksum.
    """
    sources = torch_sources(path)
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise InputError(f"{path} is damaged: its member {damaged} does not match its checksum")
    return {
        name: source.read().reshape(-1).view(_DTYPES[source.encoding]).reshape(source.shape)
        for name, source in sources.items()
    }


def torch_sources(path: str | Path) -> dict[str, Source]:
    """Where the named tensors of a state dict are in its file: F32, F64, F16 or BF16, not read yet.

    Raises:
      InputError: not a zip archive of torch, cut short, compressed, or holding anything but a dict of floating-point
        tensors. A torch file from before version 1.6 is a bare pickle, and is refused.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise InputError(f"{path} is a zip archive, but not a torch file: it has no data.pkl")
            members = _Members(path, archive, file, pickles[0].removesuffix("data.pkl"))
            state = _Unpickler(io.BytesIO(archive.read(pickles[0])), path).load()
            if not isinstance(state, dict):
                raise InputError(f"{path} holds a {type(state).__name__}, not a dict of tensors")
            return {str(name): members.source(str(name), value) for name, value in state.items()}
    except zipfile.BadZipFile as error:
        raise InputError(f"{path} is not a torch file: {_beginning(path)} ({error})") from error
    except (
        pickle.UnpicklingError, EOFError, KeyError, IndexError, AttributeError, TypeError, ValueError,
        OverflowError, NotImplementedError, RuntimeError,
    ) as error:  # fmt: skip
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not a whole torch file: {error}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


class _Storage(NamedTuple):
    encoding: str
    key: str


class _Described(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Rebuild:
    # An instance without a dict, so that a pickle cannot even set an attribute on it.
    __slots__ = ()

    def __call__(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Described:
        return _Described(storage, offset, shape, strides)


class _State(dict):
    # A module's state dict carries attributes (`_metadata`), which say nothing about its tensors.
    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


class _EmptyState:
    __slots__ = ()

    def __call__(self) -> _State:
        return _State()


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, path: Path):
        super().__init__(file)
        self._path = path

    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _Rebuild()
        if (module_name, global_name) == ("collections", "OrderedDict"):
            return _EmptyState()
        if module_name == "torch" and global_name in _ENCODINGS:
            return _ENCODINGS[global_name]
        raise InputError(f"{self._path} asks for {module_name}.{global_name}, which is no tensor; it was not run")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, encoding, key, *_ = pid
        if kind != "storage" or encoding not in _DTYPES:
            raise InputError(f"{self._path} refers to something that is no tensor storage")
        return _Storage(encoding, str(key))


@dataclasses.dataclass(frozen=True)
class _Members:
    """The raw files of an archive, in `folder`."""

    path: Path
    archive: zipfile.ZipFile
    file: io.BufferedReader
    folder: str
    found: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        name = f"{self.folder}byteorder"
        if name in self.archive.NameToInfo and self.archive.read(name) != b"little":
            raise InputError(f"{self.path} is of a machine with another byte order; save it anew on one without")

    def source(self, name: str, value: Any) -> Source:
        if not isinstance(value, _Described) or not isinstance(value.storage, _Storage):
            raise InputError(f"{self.path}: entry {name!r} is not a tensor of floating-point numbers")
        shape, strides = tuple(value.shape), tuple(value.strides)
        if not all(isinstance(number, int) and number >= 0 for number in (value.offset, *shape, *strides)):
            raise InputError(f"{self.path}: tensor {name!r} has an absurd shape or offset")
        size = math.prod(shape)
        contiguous = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
        if strides != contiguous and size > 1:
            raise InputError(f"{self.path}: tensor {name!r} is not contiguous (strides {strides})")
        start, stored = self._place(value.storage.key)
        itemsize = _DTYPES[value.storage.encoding].itemsize
        skipped, nbytes = value.offset * itemsize, size * itemsize
        if stored < skipped + nbytes:
            raise InputError(f"{self.path}: tensor {name!r} of shape {shape} needs more bytes than its storage has")
        return Source(name, self.path, shape, value.storage.encoding, start + skipped, nbytes)

    def _place(self, key: str) -> tuple[int, int]:
        """Where the bytes of a storage begin in the file, and how many there are."""
        if key not in self.found:
            info = self.archive.getinfo(f"{self.folder}data/{key}")
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & _ENCRYPTED:
                raise InputError(f"{self.path}: its member {info.filename} is compressed, as torch never writes it")
            self.file.seek(info.header_offset)
            header = self.file.read(_LOCAL_HEADER)
            if header[:4] != b"PK\x03\x04":
                raise InputError(f"{self.path} is damaged: its member {info.filename} is not where its table says")
            texts = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
            self.found[key] = info.header_offset + _LOCAL_HEADER + texts, info.file_size
        return self.found[key]


def _beginning(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        return "it is empty"
    if head[:1] == b"\x80":
        return "it is a pickle without an archive, as of torch before 1.6; save it anew with torch.save"
    return "it is text" if head.isascii() else "its first bytes are no zip archive's"

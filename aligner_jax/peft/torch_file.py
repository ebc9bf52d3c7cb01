"""Tensors out of a file that `torch.save` wrote, without torch and without running anything the file says.

A .pth file is a zip archive of one pickle and one raw file per storage. A pickle can name any function to call; here
it gets three stand-ins that only describe tensors, and every other name is refused.
"""

import io
import math
import pickle
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from aligner_jax.errors import InputError

_DTYPES = {
    "FloatStorage": np.dtype(np.float32),
    "DoubleStorage": np.dtype(np.float64),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(jnp.bfloat16),
}


def read_torch_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """The named tensors of a state dict, in the dtypes they are stored in.

    Raises:
      InputError: not a zip archive of torch, cut short, or holding anything but a dict of floating-point tensors.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise InputError(f"{path} is a zip archive, but not a torch file: it has no data.pkl")
            folder = pickles[0].removesuffix("data.pkl")
            state = _Unpickler(io.BytesIO(archive.read(pickles[0])), path).load()
            if not isinstance(state, dict):
                raise InputError(f"{path} holds a {type(state).__name__}, not a dict of tensors")
            return {str(name): _tensor(path, archive, folder, str(name), value) for name, value in state.items()}
    except zipfile.BadZipFile as error:
        raise InputError(f"{path} is not a torch file: {_beginning(path)} ({error})") from error
    except (pickle.UnpicklingError, EOFError, KeyError, IndexError, AttributeError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not a whole torch file: {error}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


class _Storage(NamedTuple):
    dtype: np.dtype
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


class _EmptyDict:
    __slots__ = ()

    def __call__(self) -> dict:
        return {}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, path: Path):
        super().__init__(file)
        self._path = path

    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _Rebuild()
        if (module_name, global_name) == ("collections", "OrderedDict"):
            return _EmptyDict()
        if module_name == "torch" and global_name in _DTYPES:
            return _DTYPES[global_name]
        raise InputError(f"{self._path} asks for {module_name}.{global_name}, which is no tensor; it was not run")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, *_ = pid
        if kind != "storage" or not isinstance(dtype, np.dtype):
            raise InputError(f"{self._path} refers to something that is no tensor storage")
        return _Storage(dtype, str(key))


def _tensor(path: Path, archive: zipfile.ZipFile, folder: str, name: str, value: Any) -> np.ndarray:
    if not isinstance(value, _Described) or not isinstance(value.storage, _Storage):
        raise InputError(f"{path}: entry {name!r} is not a tensor of floating-point numbers")
    size = math.prod(value.shape)
    contiguous = tuple(math.prod(value.shape[axis + 1 :]) for axis in range(len(value.shape)))
    if tuple(value.strides) != contiguous and size > 1:
        raise InputError(f"{path}: tensor {name!r} is not contiguous (strides {value.strides})")
    data = archive.read(f"{folder}data/{value.storage.key}")
    start, itemsize = value.offset * value.storage.dtype.itemsize, value.storage.dtype.itemsize
    if start < 0 or len(data) < start + size * itemsize:
        raise InputError(f"{path}: tensor {name!r} of shape {value.shape} needs more bytes than its storage has")
    return np.frombuffer(data, value.storage.dtype, size, start).reshape(value.shape)


def _beginning(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(64)
    return "it is empty" if not head else "it is text" if head.isascii() else "its first bytes are no zip archive's"

"""Reads tensors from a file that `torch.save` wrote, without torch and without running the file's pickle.

A .pth file is a zip archive (`torch_zip`) of one pickle (`torch_pickle`) and one raw file per storage. The storages are
not compressed, so a tensor is a range of bytes of the file, which can be read later, and in part.
"""

import dataclasses
import math
from collections.abc import Iterable
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from aligner_jax.errors import InputError
from aligner_jax.weights.finite import check_finite
from aligner_jax.weights.source import Source
from aligner_jax.weights.torch_pickle import MAX_BYTES, Tensor, read_state
from aligner_jax.weights.torch_zip import Checksum, Member, read_archive, read_member

_DTYPES = {
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
}
MAX_STORAGE = 2**33
"""Largest storage that is read whole, in bytes. The storages of a base, which are read in parts, have no limit."""
_MAX_DIMENSIONS, _MAX_NUMBERS = 8, 2**48
# Tensors may share a storage, such as an Aligner's tokens and their copy in every layer.
_MAX_SHARING = 128


@dataclasses.dataclass(frozen=True)
class TorchSource(Source):
    """An unread tensor of a torch file, which checks its storage against the archive's checksum when it is read.

    The checksum is computed from the bytes that are read, and is compared before the read of the tensor's last row
    returns. So reading a tensor to its end checks the whole storage, and reading only its beginning does not.

    Attributes:
      member: archive member of the storage that the tensor is a view of, usually of all of it.
      checksum: checksum of that member, shared by all tensors in it.
    """

    member: Member = dataclasses.field(kw_only=True)
    checksum: Checksum = dataclasses.field(kw_only=True, compare=False, repr=False)

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Reads rows start to stop as stored: uint8 [rows, bytes per row].

        Raises:
          InputError: see `Source.read`; or the storage does not match its checksum.
        """
        rows = super().read(start, stop)
        self.checksum.take(self.offset - self.member.start + start * rows.shape[1], rows.reshape(-1).data)
        if stop is None or stop >= (self.shape[0] if self.shape else 1):
            self.checksum.finish()
        return rows


def read_torch_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """Reads the named tensors of a state dict, in their stored dtypes.

    Tensors that share a storage share its memory.

    Raises:
      InputError: see `torch_sources`; or a storage does not match its checksum, or a value is not finite as float32.
    """
    storages: dict[str, bytes] = {}
    tensors = {}
    for name, source in torch_sources(path).items():
        member = source.member
        if member.name not in storages:
            storages[member.name] = read_member(member, MAX_STORAGE)
        dtype = _DTYPES[source.encoding]
        flat = np.frombuffer(
            storages[member.name], dtype, source.nbytes // dtype.itemsize, source.offset - member.start
        )
        with np.errstate(over="ignore"):
            check_finite(flat.astype(np.float32) if source.encoding == "F64" else flat, f"{path}: tensor {name}")
        tensors[name] = flat.reshape(source.shape)
    return tensors


def torch_sources(path: str | Path) -> dict[str, TorchSource]:
    """Returns the named tensors of a state dict, unread, of encoding F32, F64, F16 or BF16.

    Raises:
      InputError: the file is not a zip archive as torch writes it, is truncated or damaged, or holds anything but a
        dict of floating-point tensors. Files from before torch 1.6 are bare pickles, and are refused.
    """
    path = Path(path)
    members = read_archive(path)
    pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise InputError(f"{path} is a zip archive, but not a torch file: it has no data.pkl, or several")
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}constants.pkl" in members:
        raise InputError(f"{path} is a program of TorchScript; save the state_dict() of its module instead")
    order = members.get(f"{folder}byteorder")
    if order is not None and read_member(order, 64) != b"little":
        raise InputError(f"{path} is of a machine with another byte order; save it anew on one without")
    checksums: dict[str, Checksum] = {}
    sources = {}
    for name, tensor in read_state(read_member(members[pickles[0]], MAX_BYTES), path).items():
        key = f"{folder}data/{tensor.storage.key}"
        if key not in members:
            raise InputError(f"{path}: tensor {name!r} is in a storage {tensor.storage.key!r} that the file lacks")
        checksum = checksums.setdefault(key, Checksum(members[key]))
        sources[name] = _source(path, name, tensor, checksum)
    stored = sum(checksum.member.size for checksum in checksums.values())
    if sum(source.nbytes for source in sources.values()) > _MAX_SHARING * stored:
        raise InputError(f"{path} has storages of {stored:,} bytes that more than {_MAX_SHARING} tensors share")
    return sources


def share_checks(sources: Iterable[Source], process: int, processes: int) -> None:
    """Divides the checks of storages among processes, and makes those of this process.

    A single process checks storages while it reads them. Several processes may read parts of every storage, and would
    each have to read the rest for its checksum. So this process reads and checks every `processes`-th storage now, and
    leaves the others to the other processes.

    Args:
      process: index of this process.
      processes: number of processes.

    Raises:
      InputError: a storage of this process does not match its checksum.
    """
    if processes == 1:
        return
    checksums = {id(source.checksum): source.checksum for source in sources if isinstance(source, TorchSource)}
    for number, checksum in enumerate(checksums.values()):
        if number % processes == process:
            checksum.finish()
        else:
            checksum.leave_out()


def _source(path: Path, name: str, tensor: Tensor, checksum: Checksum) -> TorchSource:
    storage, offset, shape, strides = tensor
    itemsize, member = _DTYPES[storage.encoding].itemsize, checksum.member
    if len(shape) > _MAX_DIMENSIONS:
        raise InputError(f"{path}: tensor {name!r} has {len(shape)} dimensions, of at most {_MAX_DIMENSIONS}")
    # NumPy limits the product of the nonzero sizes, also of an empty array.
    absurd = min((offset, *shape, *strides)) < 0 or math.prod(max(1, size) for size in shape) >= _MAX_NUMBERS
    if absurd or len(strides) != len(shape):
        raise InputError(f"{path}: tensor {name!r} has an absurd shape or offset")
    count = math.prod(shape)
    contiguous = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    # The stride of an axis of size 1 has no effect.
    if count and any(a != b for a, b, size in zip(strides, contiguous, shape, strict=True) if size > 1):
        raise InputError(f"{path}: tensor {name!r} is not contiguous (strides {strides})")
    if member.size < (offset + count) * itemsize:
        raise InputError(f"{path}: tensor {name!r} of shape {shape} needs more bytes than its storage has")
    if member.size != storage.size * itemsize:
        raise InputError(
            f"{path}: the storage of tensor {name!r} has {member.size:,} bytes, but {storage.size:,} numbers are "
            f"{storage.size * itemsize:,} in {storage.encoding}"
        )
    start = member.start + offset * itemsize
    return TorchSource(name, path, shape, storage.encoding, start, count * itemsize, member=member, checksum=checksum)

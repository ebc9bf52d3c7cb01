"""Tensors of a checkpoint before they are read: their bytes in the files, and their names in the formats."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from aligner_jax.errors import InputError
from aligner_jax.model.config import LlamaConfig
from aligner_jax.weights.finite import check_finite


class Slot(NamedTuple):
    """The destination of a checkpoint tensor.

    Attributes:
      leaf: leaf of `Params`.
      layout: the tensor's axes in the letters of that leaf. "(nh)d" is a matrix whose rows run over heads, then head
        dimensions. "(nic)d" has the rotary pairs interleaved: i counts the pairs, c the two members of a pair, which
        `Params` keeps half a head apart.
    """

    leaf: str
    layout: str


class Part(NamedTuple):
    """The position of a source in a tensor that several files share.

    Attributes:
      axis: axis along which the tensor is split.
      start: index along that axis at which the source begins.
      size: length of that axis in the whole tensor.
    """

    axis: int
    start: int
    size: int


@dataclasses.dataclass(frozen=True)
class Source:
    """An unread tensor of a checkpoint, or a part of one: `nbytes` bytes at `offset` in `file`, row-major.

    Attributes:
      shape: shape of the part if this is one, else of the tensor.
      encoding: the format's name of the stored dtype; see `Format.decoders`.
      part: position in the whole tensor; None if this is the whole tensor.
    """

    name: str
    file: Path
    shape: tuple[int, ...]
    encoding: str
    offset: int
    nbytes: int
    part: Part | None = None

    @property
    def whole_shape(self) -> tuple[int, ...]:
        """Shape of the whole tensor, also if this is a part of it."""
        if self.part is None:
            return self.shape
        return (*self.shape[: self.part.axis], self.part.size, *self.shape[self.part.axis + 1 :])

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Reads rows start to stop as stored: uint8 [rows, bytes per row].

        Raises:
          InputError: the file ends before the rows do, or cannot be read.
        """
        rows = self.shape[0] if self.shape else 1
        row_bytes = self.nbytes // max(1, rows)
        stop = rows if stop is None else stop
        count = (stop - start) * row_bytes
        try:
            data = np.fromfile(self.file, np.uint8, count, offset=self.offset + start * row_bytes)
        except OSError as error:
            raise InputError(f"{self.file}, which has tensor {self.name}, cannot be read: {error.strerror}") from error
        if data.size != count:
            raise InputError(f"{self.file} ends inside tensor {self.name}; the file is cut short")
        return data.reshape(stop - start, row_bytes)


@dataclasses.dataclass(frozen=True)
class Format:
    """Tensor names and encodings of one kind of checkpoint.

    Attributes:
      slots: slots by tensor name, in which {l} stands for the layer.
      decoders: functions from uint8 rows to floating-point rows, by encoding.
      ignored: regular expressions for the names of tensors that a LLaMA does not need.
      redundant: names of tensors that may repeat another one, with the name of the tensor that they must equal.
    """

    slots: Mapping[str, Slot]
    decoders: Mapping[str, Callable[[np.ndarray], np.ndarray]]
    ignored: tuple[str, ...] = ()
    redundant: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def decode(self, source: Source, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Returns rows start to stop as finite floating-point numbers [rows, …]. Call `check_encoding` first.

        Raises:
          InputError: the file ends before the rows do, cannot be read, or holds NaN or infinity there.
        """
        numbers = self.decoders[source.encoding](source.read(start, stop))
        check_finite(numbers, f"{source.file}: tensor {source.name}")
        return numbers

    def check_encoding(self, source: Source) -> None:
        """Raises InputError unless the source's encoding has a decoder."""
        if source.encoding not in self.decoders:
            raise InputError(
                f"{source.file}: tensor {source.name} is stored as {source.encoding}, "
                f"which is not one of {', '.join(self.decoders)}"
            )


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Files of a base before its weights are loaded.

    Attributes:
      sources: every tensor, in any order.
      form: names and encodings of the tensors.
      where: file or folder, for messages about missing tensors.
    """

    config: LlamaConfig
    sources: Sequence[Source]
    form: Format
    where: Path

    @property
    def stored_dtype(self) -> Literal["float32", "bfloat16"]:
        """The smaller of the two dtypes that holds every weight exactly."""
        return "bfloat16" if {source.encoding for source in self.sources} == {"BF16"} else "float32"

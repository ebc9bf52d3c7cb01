"""A tensor of a checkpoint before it is read: where its bytes are, and what each kind of checkpoint calls it."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from aligner_jax.errors import InputError
from aligner_jax.model.config import LlamaConfig
from aligner_jax.weights.finite import check_finite


class Slot(NamedTuple):
    """Where a checkpoint tensor goes: a leaf of `Params`, and the tensor's axes in that leaf's letters.

    "(nh)d" is a matrix whose rows run over heads, then head dimensions. "(nic)d" has the rotary pairs interleaved: i
    counts the pairs, c the two members of a pair, which `Params` keeps half a head apart.
    """

    leaf: str
    layout: str


class Part(NamedTuple):
    """Where a source lies in a tensor that several files share: from `start` along `axis`, which is `size` long."""

    axis: int
    start: int
    size: int


@dataclasses.dataclass(frozen=True)
class Source:
    """One tensor of a checkpoint, or a part of one, not read yet: `nbytes` bytes at `offset` in `file`, row-major.

    `shape` is that of the bytes; `part` is None where they are the whole tensor.
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
        """The shape of the tensor that this is, or is a part of."""
        if self.part is None:
            return self.shape
        return (*self.shape[: self.part.axis], self.part.size, *self.shape[self.part.axis + 1 :])

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows start to stop as stored: uint8 [rows, bytes a row].

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
    """What one kind of checkpoint calls its tensors and how it stores numbers.

    Attributes:
      slots: tensor name, with {l} for the layer, to its place.
      decoders: encoding name to a function from uint8 rows to floating-point rows.
      ignored: regular expressions of tensor names that hold nothing a LLaMA needs.
      redundant: tensors that may be present in vain, to the tensor they must equal.
    """

    slots: Mapping[str, Slot]
    decoders: Mapping[str, Callable[[np.ndarray], np.ndarray]]
    ignored: tuple[str, ...] = ()
    redundant: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def decode(self, source: Source, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Returns rows start to stop as finite floating-point numbers [rows, …]; `check_encoding` comes before.

        Raises:
          InputError: the file ends before the rows do, cannot be read, or holds NaN or infinity there.
        """
        numbers = self.decoders[source.encoding](source.read(start, stop))
        check_finite(numbers, f"{source.file}: tensor {source.name}")
        return numbers

    def check_encoding(self, source: Source) -> None:
        """Raises InputError unless the source's numbers can be decoded."""
        if source.encoding not in self.decoders:
            raise InputError(
                f"{source.file}: tensor {source.name} is stored as {source.encoding}, "
                f"which is not one of {', '.join(self.decoders)}"
            )


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A base's files before a weight is read: every tensor, in any order, and what they are called.

    `where` is the file or folder, for messages about tensors that no file has.
    """

    config: LlamaConfig
    sources: Sequence[Source]
    form: Format
    where: Path

    @property
    def stored_dtype(self) -> Literal["float32", "bfloat16"]:
        """The smaller dtype that holds every number exactly."""
        return "bfloat16" if {source.encoding for source in self.sources} == {"BF16"} else "float32"

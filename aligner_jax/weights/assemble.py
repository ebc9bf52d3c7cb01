"""From the tensors of a checkpoint to `Params`: every tensor accounted for, and no second copy of the model.

A format is a table from its tensor names to leaves of `Params`. Names and shapes are all checked before a weight is
read. Then each leaf's stacked array is allocated once, in its final dtype, and filled from the file a few rows at a
time, so the host holds the model and one chunk, however large the checkpoint's tensors are.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from aligner_jax.errors import InputError
from aligner_jax.model.config import LlamaConfig
from aligner_jax.model.params import Layers, Params, Spec, param_specs

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(jnp.bfloat16)}

_CHUNK_BYTES = 2**20
_ALIGNMENT = 64  # The CPU backend takes a host array without copying it only from here on.


class Slot(NamedTuple):
    """Where a checkpoint tensor goes: a leaf of `Params`, and the tensor's axes in that leaf's letters.

    "(nh)d" is a matrix whose rows run over heads, then head dimensions. "(nic)d" has the rotary pairs interleaved: i
    counts the pairs, c the two members of a pair, which `Params` keeps half a head apart.
    """

    leaf: str
    layout: str


@dataclasses.dataclass(frozen=True)
class Source:
    """One tensor of a checkpoint, not read yet: `nbytes` bytes at `offset` in `file`, row-major."""

    name: str
    file: Path
    shape: tuple[int, ...]
    encoding: str
    offset: int
    nbytes: int

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows start to stop as stored: uint8 [rows, bytes a row].

        Raises:
          InputError: the file ends before the rows do.
        """
        row_bytes = self.nbytes // self.shape[0]
        stop = self.shape[0] if stop is None else stop
        count = (stop - start) * row_bytes
        data = np.fromfile(self.file, np.uint8, count, offset=self.offset + start * row_bytes)
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
        """Rows start to stop as floating-point numbers [rows, …]; `check_encoding` says if that can be done."""
        return self.decoders[source.encoding](source.read(start, stop))

    def check_encoding(self, source: Source) -> None:
        """Raises InputError unless the source's numbers can be decoded."""
        if source.encoding not in self.decoders:
            raise InputError(
                f"{source.file}: tensor {source.name} is stored as {source.encoding}, "
                f"which is not one of {', '.join(self.decoders)}"
            )


class _Place(NamedTuple):
    slot: Slot
    layer: int | None
    shape: tuple[int, ...]


def assemble(config: LlamaConfig, sources: Iterable[Source], form: Format, dtype: str, where: Path) -> Params:
    """The parameters of a model, from the tensors of its checkpoint.

    Args:
      sources: every tensor of the checkpoint, in any order.
      dtype: of the result: "float32" or "bfloat16"; rounding is to nearest even.
      where: the checkpoint, for messages about tensors that no file has.

    Raises:
      InputError: a tensor is unknown, missing, there twice, of a wrong shape, or stored in a way that is not
        supported; or a redundant one differs from the tensor it repeats; or dtype is neither of the two.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    sources = list(sources)
    if config.num_layers > len(sources):
        raise InputError(f"{where} has {len(sources)} tensors, too few for the {config.num_layers} layers it speaks of")
    specs = _specs(config)
    places = dict(_places(config, specs, form))
    found = _account(sources, places, form, where)
    by_leaf: dict[str, list[tuple[Source, _Place]]] = {leaf: [] for leaf in specs}
    for name, source in found.items():
        by_leaf[places[name].slot.leaf].append((source, places[name]))
    leaves = {
        leaf: jax.device_put(_fill(leaf, specs[leaf], parts, form, DTYPES[dtype])) for leaf, parts in by_leaf.items()
    }
    layers = Layers(**{field.name: leaves.pop(field.name, None) for field in dataclasses.fields(Layers)})
    return Params(layers=layers, **leaves)


def _specs(config: LlamaConfig) -> dict[str, Spec]:
    specs = param_specs(config)
    named = {**vars(specs), **vars(specs.layers)}
    return {leaf: spec for leaf, spec in named.items() if isinstance(spec, Spec)}


def _places(config: LlamaConfig, specs: Mapping[str, Spec], form: Format) -> Iterator[tuple[str, _Place]]:
    for name, slot in form.slots.items():
        if slot.leaf not in specs:
            continue
        sizes = dict(zip(_axes(slot.leaf), specs[slot.leaf].shape, strict=True))
        sizes |= {"i": config.head_dim // 2, "c": 2}
        groups = re.findall(r"\((\w+)\)|(\w)", slot.layout)
        shape = tuple(math.prod(sizes[axis] for axis in several or one) for several, one in groups)
        if "{l}" not in name:
            yield name, _Place(slot, None, shape)
            continue
        for layer in range(config.num_layers):
            yield name.format(l=layer), _Place(slot, layer, shape)


def _axes(leaf: str) -> str:
    return leaf.rsplit("_", 1)[1]


def _account(sources: Iterable[Source], places: Mapping[str, _Place], form: Format, where: Path) -> dict[str, Source]:
    found: dict[str, Source] = {}
    extra: list[Source] = []
    for source in sources:
        name = source.name
        if any(re.fullmatch(pattern, name) for pattern in form.ignored):
            continue
        if name in found:
            other = found[name].file
            place = f"in {other.name} too" if other != source.file else "twice"
            raise InputError(f"{source.file}: tensor {name} is there {place}")
        if name in form.redundant and name not in places:
            extra.append(source)
            continue
        if name not in places:
            raise InputError(f"{source.file}: tensor {name} has no place in this model")
        if source.shape != places[name].shape:
            raise InputError(
                f"{source.file}: tensor {name} has shape {list(source.shape)}, "
                f"but the model's configuration asks for {list(places[name].shape)}"
            )
        form.check_encoding(source)
        found[name] = source
    missing = [name for name in places if name not in found]
    if missing:
        more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError(f"{where}: tensor {missing[0]} is missing{more}")
    for source in extra:
        _check_equal(source, found[form.redundant[source.name]], form)
    return found


def _check_equal(source: Source, original: Source, form: Format) -> None:
    form.check_encoding(source)
    equal = source.shape == original.shape and all(
        np.array_equal(form.decode(source, *rows), form.decode(original, *rows)) for rows in _chunks(source.shape)
    )
    if not equal:
        raise InputError(
            f"{source.file}: tensor {source.name} differs from {original.name}, but the configuration ties the two"
        )


def _fill(leaf: str, spec: Spec, parts: list[tuple[Source, _Place]], form: Format, dtype: np.dtype) -> np.ndarray:
    """The stacked array of one leaf."""
    # NumPy copies and transposes its own integers several times faster than a bfloat16 it knows nothing of.
    stacked = _aligned(spec.shape, np.dtype(f"u{dtype.itemsize}"))
    axes = _axes(leaf)
    for source, place in parts:
        target = stacked if place.layer is None else stacked[place.layer]
        target = _in_layout(target, axes if place.layer is None else axes[1:], place.slot.layout)
        rows_each = source.shape[0] // target.shape[0]
        for start, stop in _chunks(source.shape, rows_each):
            decoded = form.decode(source, start, stop).astype(dtype, copy=False).view(stacked.dtype)
            part = target[start // rows_each : stop // rows_each]
            part[...] = decoded.reshape(part.shape)
    return stacked.view(dtype)


def _in_layout(array: np.ndarray, axes: str, layout: str) -> np.ndarray:
    """A view of a leaf whose elements are in the order of the checkpoint's."""
    order = re.sub(r"[()]", "", layout)
    if "i" in order:
        at = axes.index("h")
        array = array.reshape(*array.shape[:at], 2, -1, *array.shape[at + 1 :])
        axes = axes.replace("h", "ci")
    return array.transpose([axes.index(axis) for axis in order])


def _chunks(shape: tuple[int, ...], multiple: int = 1) -> Iterator[tuple[int, int]]:
    """Ranges of rows of about `_CHUNK_BYTES` in float32, each a multiple of `multiple` rows."""
    rows, row_bytes = shape[0], 4 * math.prod(shape[1:])
    step = max(1, _CHUNK_BYTES // (row_bytes * multiple)) * multiple
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    nbytes = math.prod(shape) * dtype.itemsize
    buffer = np.empty(nbytes + _ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % _ALIGNMENT
    return buffer[start : start + nbytes].view(dtype).reshape(shape)

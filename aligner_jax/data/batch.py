"""Batches of rows. Each array is declared once, and rows are packed, padded, checked and planned by its declaration.

Shapes: b row, t position, u unit (the fewest rows that hold whole pairs), m pair of a unit. `objectives.batch` makes
pytrees of these classes, since nothing in `data` imports JAX.
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int32, Shaped

from aligner_jax.errors import InputError


def array(axes: str, dtype: str, *, padding: float = 0, optional: bool = False) -> Any:
    """Returns a dataclass field that holds an array.

    Args:
      axes: letters of its axes, such as "b t"; a batch's `sizes` say how long each is.
      dtype: the name of a NumPy dtype.
      padding: the value on rows and units that a batch is filled up with.
      optional: the field may be None, and is by default.
    """
    metadata = {"axes": tuple(axes.split()), "dtype": np.dtype(dtype), "padding": padding, "optional": optional}
    return dataclasses.field(metadata=metadata, default=None if optional else dataclasses.MISSING)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows of tokens: documents are numbered 1, 2, … within a row, 0 is padding; positions restart at each document.

    The arrays are NumPy's; in a step they are JAX's, and of a batch that is planned for, shapes.

    Attributes:
      adapter_b: the adapter of a stack that each row is for; the pipeline makes none.
    """

    tokens_bt: Int32[Any, "b t"] = array("b t", "int32")
    segment_ids_bt: Int32[Any, "b t"] = array("b t", "int32")
    positions_bt: Int32[Any, "b t"] = array("b t", "int32")
    loss_mask_bt: Bool[Any, "b t"] = array("b t", "bool")
    adapter_b: Int32[Any, " b"] | None = array("b", "int32", optional=True)

    @staticmethod
    def rows_a_unit(packing: bool) -> int:
        """Returns how many rows have to stay together."""
        return 1

    @staticmethod
    def sizes(*, batch_size: int, sequence_length: int, packing: bool) -> dict[str, int]:
        """Returns the length of each axis, by its letter."""
        return {"b": batch_size, "t": sequence_length}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairBatch(Batch):
    """A batch whose documents are preference pairs; see `data.pair_rows`.

    Attributes:
      pairs_um: the number of each pair among all, −1 where a unit holds fewer.
      reference_bt: where it is known beforehand, the reference's log-probability of each token that is a target; 0
        elsewhere.
    """

    pairs_um: Int32[Any, "u m"] = array("u m", "int32", padding=-1)
    reference_bt: Float32[Any, "b t"] | None = array("b t", "float32", optional=True)

    @staticmethod
    def rows_a_unit(packing: bool) -> int:
        """Returns 1 with packing, and 2 without: the chosen and the rejected document have a row each."""
        return 1 if packing else 2

    @staticmethod
    def sizes(*, batch_size: int, sequence_length: int, packing: bool) -> dict[str, int]:
        """Returns the length of each axis, by its letter."""
        # A document has two tokens at least, a target and one before it.
        pairs = sequence_length // 4 if packing else 1
        units = batch_size // PairBatch.rows_a_unit(packing)
        return {"b": batch_size, "t": sequence_length, "u": units, "m": pairs}


def arrays_of(batch: Batch) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Returns the arrays by name, without the optional ones that are None."""
    named = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    return {name: leaf for name, leaf in named.items() if leaf is not None}


def declared(
    kind: type[Batch], sizes: Mapping[str, int], *, carrying: Collection[str] = ()
) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Returns shape and dtype of each array of a batch, by name.

    Args:
      carrying: the optional arrays that the batch has.
    """
    return {
        field.name: (tuple(sizes[axis] for axis in field.metadata["axes"]), field.metadata["dtype"])
        for field in dataclasses.fields(kind)
        if not field.metadata["optional"] or field.name in carrying
    }


def filled[B: Batch](kind: type[B], arrays: Mapping[str, Shaped[np.ndarray, "..."]], sizes: Mapping[str, int]) -> B:
    """Returns a batch of the arrays, whose first axes are filled up to their sizes.

    Raises:
      InputError: see `check`.
    """
    fields = {field.name: field.metadata for field in dataclasses.fields(kind)}
    full = {}
    for name, leaf in arrays.items():
        missing = sizes[fields[name]["axes"][0]] - len(leaf)
        padding = [(0, missing), *[(0, 0)] * (leaf.ndim - 1)]
        full[name] = np.pad(leaf, padding, constant_values=fields[name]["padding"]) if missing > 0 else leaf
    batch = kind(**full)
    check(batch, sizes)
    return batch


def check(batch: Batch, sizes: Mapping[str, int] | None = None) -> None:
    """Refuses a batch with an array that is not as its class declares it.

    Args:
      sizes: lengths of axes, by letter; an axis that is not among them may have any, the same in all arrays.

    Raises:
      InputError: names the array, with its shape and dtype and the declared ones.
    """
    known = dict(sizes or {})
    for field in dataclasses.fields(batch):
        leaf: Any = getattr(batch, field.name)
        axes, dtype = field.metadata["axes"], field.metadata["dtype"]
        if leaf is None and field.metadata["optional"]:
            continue
        shape: tuple[int, ...] | None = getattr(leaf, "shape", None)
        if shape is None or len(shape) != len(axes) or getattr(leaf, "dtype", None) != dtype:
            raise _wrong(field.name, leaf, axes, dtype, known)
        if any(known.setdefault(axis, size) != size for axis, size in zip(axes, shape, strict=True)):
            raise _wrong(field.name, leaf, axes, dtype, known)


def _wrong(name: str, leaf: Any, axes: tuple[str, ...], dtype: np.dtype, sizes: Mapping[str, int]) -> InputError:
    found = f"{leaf.dtype}{list(leaf.shape)}" if hasattr(leaf, "shape") else f"of type {type(leaf).__name__}"
    wanted = ", ".join(str(sizes.get(axis, axis)) for axis in axes)
    return InputError(f"{name} of a batch is {found}, but should be {dtype}[{wanted}]")

"""Batches of rows, each with one document or several.

Each array is declared once. Its declaration says how it is padded, checked and planned for.

Shapes: b row, t position, u unit (the fewest rows that hold complete pairs), m pair within a unit. `objectives.batch`
registers these classes as pytrees, since nothing in `data` imports JAX.
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
      axes: letters of the axes, such as "b t"; `Batch.sizes` gives their lengths.
      dtype: name of a NumPy dtype.
      padding: value of the padding rows and units.
      optional: allows None, which is then the default.
    """
    metadata = {"axes": tuple(axes.split()), "dtype": np.dtype(dtype), "padding": padding, "optional": optional}
    return dataclasses.field(metadata=metadata, default=None if optional else dataclasses.MISSING)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """A batch of rows, each with one document or several.

    The pipeline makes NumPy arrays. A step holds JAX arrays instead, and a plan `jax.ShapeDtypeStruct`s.

    Attributes:
      tokens_bt: token ids.
      segment_ids_bt: document of each token: 1, 2, … within a row; 0 is padding.
      positions_bt: position of each token in its document, from 0.
      loss_mask_bt: True at targets.
      adapter_b: index of the stacked adapter that each row belongs to; None from the pipeline.
      packed: True if a row may hold several documents, so that attention has to compare segments. Static in programs.
    """

    tokens_bt: Int32[Any, "b t"] = array("b t", "int32")
    segment_ids_bt: Int32[Any, "b t"] = array("b t", "int32")
    positions_bt: Int32[Any, "b t"] = array("b t", "int32")
    loss_mask_bt: Bool[Any, "b t"] = array("b t", "bool")
    adapter_b: Int32[Any, " b"] | None = array("b", "int32", optional=True)
    packed: bool = True

    @staticmethod
    def rows_per_unit(packing: bool) -> int:
        """Returns the number of rows in a unit, which batches do not split."""
        return 1

    @staticmethod
    def sizes(*, batch_size: int, sequence_length: int, packing: bool) -> dict[str, int]:
        """Returns the length of each axis, by its letter."""
        return {"b": batch_size, "t": sequence_length}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairBatch(Batch):
    """A batch of preference pairs; see `data.pair_rows`.

    Attributes:
      pairs_um: index of each pair in the dataset; −1 in unused places of a unit.
      reference_bt: log-probabilities of the targets under the reference model, 0 at other tokens; None if they are not
        computed beforehand.
    """

    pairs_um: Int32[Any, "u m"] = array("u m", "int32", padding=-1)
    reference_bt: Float32[Any, "b t"] | None = array("b t", "float32", optional=True)

    @staticmethod
    def rows_per_unit(packing: bool) -> int:
        """Returns 1 with packing. Returns 2 without: the chosen and the rejected document have a row each."""
        return 1 if packing else 2

    @staticmethod
    def sizes(*, batch_size: int, sequence_length: int, packing: bool) -> dict[str, int]:
        """Returns the length of each axis, by its letter."""
        # A document has at least two tokens, a target and one before it, so a pair has at least four.
        pairs = sequence_length // 4 if packing else 1
        units = batch_size // PairBatch.rows_per_unit(packing)
        return {"b": batch_size, "t": sequence_length, "u": units, "m": pairs}


def array_fields(kind: type[Batch]) -> dict[str, Mapping[str, Any]]:
    """Returns the declarations of a batch's arrays, by name; see `array`."""
    return {field.name: field.metadata for field in dataclasses.fields(kind) if "axes" in field.metadata}


def arrays_of(batch: Batch) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Returns the arrays of a batch by name, without those that are None."""
    named = {name: getattr(batch, name) for name in array_fields(type(batch))}
    return {name: leaf for name, leaf in named.items() if leaf is not None}


def declared(
    kind: type[Batch], sizes: Mapping[str, int], *, carrying: Collection[str] = ()
) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Returns the shape and dtype of every array of a batch, by name.

    Args:
      kind: class of the batch.
      sizes: length of each axis, by letter.
      carrying: names of the optional arrays that the batch has.
    """
    return {
        name: (tuple(sizes[axis] for axis in field["axes"]), field["dtype"])
        for name, field in array_fields(kind).items()
        if not field["optional"] or name in carrying
    }


def filled[B: Batch](
    kind: type[B], arrays: Mapping[str, Shaped[np.ndarray, "..."]], sizes: Mapping[str, int], *, packed: bool = True
) -> B:
    """Returns a batch of the arrays, with their first axes padded to `sizes`.

    Raises:
      InputError: see `check`.
    """
    fields, full = array_fields(kind), {}
    for name, leaf in arrays.items():
        missing = sizes[fields[name]["axes"][0]] - len(leaf)
        padding = [(0, missing), *[(0, 0)] * (leaf.ndim - 1)]
        full[name] = np.pad(leaf, padding, constant_values=fields[name]["padding"]) if missing > 0 else leaf
    batch = kind(**full, packed=packed)
    check(batch, sizes)
    return batch


def check(batch: Batch, sizes: Mapping[str, int] | None = None) -> None:
    """Refuses a batch with an array of another shape or dtype than its class declares.

    Args:
      batch: the batch.
      sizes: lengths of axes, by letter. An axis that is not listed may have any length, the same in all arrays.

    Raises:
      InputError: an array is wrong; the message names it, with its shape and dtype and the declared ones.
    """
    known = dict(sizes or {})
    for name, field in array_fields(type(batch)).items():
        leaf: Any = getattr(batch, name)
        axes, dtype = field["axes"], field["dtype"]
        if leaf is None and field["optional"]:
            continue
        shape: tuple[int, ...] | None = getattr(leaf, "shape", None)
        if shape is None or len(shape) != len(axes) or getattr(leaf, "dtype", None) != dtype:
            raise _wrong(name, leaf, axes, dtype, known)
        if any(known.setdefault(axis, size) != size for axis, size in zip(axes, shape, strict=True)):
            raise _wrong(name, leaf, axes, dtype, known)


def _wrong(name: str, leaf: Any, axes: tuple[str, ...], dtype: np.dtype, sizes: Mapping[str, int]) -> InputError:
    found = f"{leaf.dtype}{list(leaf.shape)}" if hasattr(leaf, "shape") else f"of type {type(leaf).__name__}"
    wanted = ", ".join(str(sizes.get(axis, axis)) for axis in axes)
    return InputError(f"{name} of a batch is {found}, but should be {dtype}[{wanted}]")

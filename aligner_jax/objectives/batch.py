"""Batches as pytrees, and abstract batches for compilation."""

import dataclasses
from collections.abc import Collection, Mapping

import jax

from aligner_jax.data.batch import Batch, PairBatch, array_fields, arrays_of, check, declared

__all__ = ["Batch", "PairBatch", "abstract", "arrays_of", "check", "pytree"]


def pytree[B: Batch](kind: type[B]) -> type[B]:
    """Registers a subclass of `Batch` as a pytree and returns it; to be used as a class decorator."""
    arrays = list(array_fields(kind))
    others = [field.name for field in dataclasses.fields(kind) if field.name not in arrays]
    return jax.tree_util.register_dataclass(kind, data_fields=arrays, meta_fields=others)


pytree(Batch)
pytree(PairBatch)


def abstract[B: Batch](
    kind: type[B], sizes: Mapping[str, int], *, carrying: Collection[str] = (), packed: bool = True
) -> B:
    """Returns a batch of `jax.ShapeDtypeStruct`s; the other arguments are those of `data.batch.declared`."""
    shapes = declared(kind, sizes, carrying=carrying)
    return kind(**{name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}, packed=packed)

"""Batches: one declaration gives shapes, padding and checks."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from aligner_jax.data.batch import array, declared, filled
from aligner_jax.errors import InputError
from aligner_jax.objectives.batch import Batch, PairBatch, abstract, arrays_of, check, pytree

SIZES = PairBatch.sizes(batch_size=4, sequence_length=8, packing=False)


def arrays(rows: int = 4) -> dict[str, np.ndarray]:
    found = declared(PairBatch, {**SIZES, "b": rows, "u": rows // 2}, carrying=["reference_bt"])
    return {name: np.ones(*shape_and_dtype) for name, shape_and_dtype in found.items()}


def test_missing_rows_are_padding_and_missing_pairs_are_none():
    batch = filled(PairBatch, arrays(2), SIZES)
    assert batch.tokens_bt.tolist() == [[1] * 8] * 2 + [[0] * 8] * 2
    assert batch.pairs_um.tolist() == [[1], [-1]]
    assert batch.adapter_b is None
    assert jax.tree.map(lambda x: (x.shape, x.dtype), arrays_of(batch)) == declared(
        PairBatch, SIZES, carrying=["reference_bt"]
    )


def test_a_batch_is_a_pytree_of_its_arrays():
    batch = filled(PairBatch, arrays(), SIZES)
    paths = [jax.tree_util.keystr(path, simple=True) for path, _ in jax.tree_util.tree_leaves_with_path(batch)]
    assert paths == list(arrays_of(batch))
    doubled = jax.jit(lambda batch: jax.tree.map(lambda x: x + x, batch))(batch)
    assert isinstance(doubled, PairBatch)
    assert doubled.adapter_b is None
    np.testing.assert_array_equal(doubled.pairs_um, 2 * batch.pairs_um)
    shapes = abstract(PairBatch, SIZES, carrying=["reference_bt"])
    assert jax.tree.structure(shapes) == jax.tree.structure(batch)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pairs_um": np.zeros((3, 1), np.int32)}, "pairs_um of a batch is int32[3, 1], but should be int32[2, 1]"),
        ({"loss_mask_bt": np.zeros((4, 8))}, "loss_mask_bt of a batch is float64[4, 8], but should be bool[4, 8]"),
        ({"tokens_bt": np.zeros(4, np.int32)}, "tokens_bt of a batch is int32[4], but should be int32[4, 8]"),
        ({"positions_bt": None}, "positions_bt of a batch is of type NoneType, but should be int32[4, 8]"),
        ({"adapter_b": np.zeros(5, np.int32)}, "adapter_b of a batch is int32[5], but should be int32[4]"),
    ],
)
def test_arrays_that_are_not_as_declared_are_named(changes: dict, message: str):
    batch = filled(PairBatch, arrays(), SIZES)
    check(batch)
    with pytest.raises(InputError) as error:
        check(dataclasses.replace(batch, **changes), SIZES)
    assert str(error.value) == message


def test_axes_have_one_length_in_all_arrays():
    batch = filled(PairBatch, arrays(), SIZES)
    with pytest.raises(InputError, match=r"positions_bt of a batch is int32\[4, 7\], but should be int32\[4, 8\]"):
        check(dataclasses.replace(batch, positions_bt=batch.positions_bt[:, 1:]))


@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class Rewarded(Batch):
    """A batch of an objective outside the package."""

    rewards_b: Any = array("b", "float32")


def test_another_class_of_batches_declares_its_arrays_alone():
    sizes = Rewarded.sizes(batch_size=2, sequence_length=3, packing=True)
    shapes = abstract(Rewarded, sizes)
    assert shapes.rewards_b == jax.ShapeDtypeStruct((2,), np.float32)
    assert len(jax.tree.leaves(shapes)) == 5

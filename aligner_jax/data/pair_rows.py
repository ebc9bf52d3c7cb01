"""Rows of preference pairs: both documents of a pair always come in one batch.

A batch is made of units, the smallest parts that hold whole pairs. Packed, a unit is one row with as many pairs as fit:
documents 1 and 2 are the first pair's chosen and rejected one, 3 and 4 the second's. Without packing a unit is two
rows: the chosen document, numbered 1, and the rejected one, numbered 2.

Shapes: b row, t position, u unit, m pair (of a unit, at most; or of all), and 2 for chosen and rejected.
"""

from collections.abc import Iterable, Sequence
from typing import NotRequired, cast

import grain
import numpy as np
from grain import experimental
from jaxtyping import Float32, Int32

from aligner_jax.data.epochs import Epochs
from aligner_jax.data.pairs import Pair
from aligner_jax.data.pipeline import IN_THIS_THREAD, WINDOW, Batch
from aligner_jax.errors import InputError

_ROWS = ("tokens_bt", "segment_ids_bt", "positions_bt", "loss_mask_bt")


class PairBatch(Batch):
    """A batch whose documents are pairs.

    Attributes:
      pairs_um: the number of each pair among all, −1 where a unit holds fewer.
      reference_um2: the reference's log-probabilities of both answers, where they are known beforehand; 0 without pair.
    """

    pairs_um: Int32[np.ndarray, "u m"]
    reference_um2: NotRequired[Float32[np.ndarray, "u m 2"]]


def train_pair_batches(
    pairs: Sequence[Pair],
    *,
    batch_size: int,
    sequence_length: int,
    seed: int,
    packing: bool = True,
    reference_m2: Float32[np.ndarray, "m 2"] | None = None,
) -> "grain.DatasetIterator[PairBatch]":
    """Batches without end: all pairs in a new order each epoch, each once an epoch; see `pipeline.train_batches`.

    Args:
      pairs: from `tokenize_pairs` with the same `sequence_length` and `packing`.
      batch_size: rows a batch; even without packing, where a pair is two of them.
      sequence_length: tokens a row.
      seed: of the order.
      packing: whether rows hold as many whole pairs as fit, or one document.
      reference_m2: the reference's log-probabilities of all pairs' answers, for the batches to carry along.

    Returns:
      An iterator with `get_state()` and `set_state()` as that of `pipeline.train_batches`.

    Raises:
      InputError: there are no pairs, one does not fit, or `batch_size` is odd without packing.
    """
    _check(pairs, batch_size, sequence_length, packing)
    stream = grain.MapDataset.source(Epochs(range(len(pairs)), seed))
    tokens = sum(len(pair["chosen"]["tokens"]) + len(pair["rejected"]["tokens"]) for pair in pairs)
    window = min(WINDOW, -(-tokens // sequence_length))
    units = _units(stream, pairs, sequence_length, window if packing else None, seed)
    return iter(_batches(units, batch_size, packing, reference_m2))


def eval_pair_batches(
    pairs: Sequence[Pair],
    *,
    batch_size: int,
    sequence_length: int,
    packing: bool = True,
    reference_m2: Float32[np.ndarray, "m 2"] | None = None,
) -> Iterable[PairBatch]:
    """All pairs once, in order from batch to batch; rows of padding fill the last. Can be gone through repeatedly.

    Args and Raises: as `train_pair_batches`.
    """
    _check(pairs, batch_size, sequence_length, packing)
    stream = grain.MapDataset.source(range(len(pairs)))
    units = _units(stream, pairs, sequence_length, batch_size if packing else None, None)
    return cast(Iterable[PairBatch], _batches(units, batch_size, packing, reference_m2))


def most_pairs(sequence_length: int, packing: bool) -> int:
    """Pairs that a unit has places for: a document has two tokens at least, a target and one before it."""
    return sequence_length // 4 if packing else 1


def _check(pairs: Sequence[Pair], batch_size: int, sequence_length: int, packing: bool) -> None:
    if not pairs:
        raise InputError("there are no preference pairs to make rows of")
    if not packing and batch_size % 2:
        raise InputError(f"a batch of {batch_size} rows cannot hold whole pairs, since a pair is two rows")
    lengths = ((len(pair["chosen"]["tokens"]), len(pair["rejected"]["tokens"])) for pair in pairs)
    longest = max(sum(both) if packing else max(both) for both in lengths)
    if longest > sequence_length:
        raise InputError(f"a {'pair' if packing else 'document'} has {longest} tokens and a row {sequence_length}")


def _units(
    stream: grain.MapDataset, pairs: Sequence[Pair], sequence_length: int, window: int | None, seed: int | None
) -> grain.IterDataset:
    """Units as dicts of [rows, t] arrays and pairs_m, of a stream of numbers; window None: a document a row."""
    if window is None:
        return stream.map(lambda number: _two_rows(pairs[number], number, sequence_length)).to_iter_dataset(
            IN_THIS_THREAD
        )
    most = most_pairs(sequence_length, packing=True)
    packed = experimental.FirstFitPackIterDataset(
        stream.map(lambda number: _one_piece(pairs[number], number)).to_iter_dataset(IN_THIS_THREAD),
        length_struct={**dict.fromkeys(("tokens", "loss_mask", "sides", "positions"), sequence_length), "number": most},
        num_packing_bins=window,
        shuffle_bins=seed is not None,
        seed=seed or 0,
    )
    return packed.map(_packed_row)


def _one_piece(pair: Pair, number: int) -> dict[str, np.ndarray]:
    """A pair as one stretch of a row. Numbers begin at 1 here, since the packer fills up with 0."""
    both = pair["chosen"], pair["rejected"]
    sizes = [len(document["tokens"]) for document in both]
    return {
        "tokens": np.concatenate([document["tokens"] for document in both]),
        "loss_mask": np.concatenate([document["loss_mask"] for document in both]),
        "sides": np.repeat(np.array([1, 2], np.int32), sizes),
        "positions": np.concatenate([np.arange(size, dtype=np.int32) for size in sizes]),
        "number": np.array([number + 1], np.int32),
    }


def _packed_row(row: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    sides = row["sides"]
    rows = {
        "tokens_bt": row["tokens"],
        "segment_ids_bt": np.where(sides > 0, 2 * (row["sides_segment_ids"] - 1) + sides, 0).astype(np.int32),
        "positions_bt": row["positions"],
        "loss_mask_bt": row["loss_mask"],
    }
    return {**{name: array[None] for name, array in rows.items()}, "pairs_m": row["number"] - 1}


def _two_rows(pair: Pair, number: int, sequence_length: int) -> dict[str, np.ndarray]:
    unit = {name: np.zeros((2, sequence_length), np.int32) for name in _ROWS}
    unit["loss_mask_bt"] = unit["loss_mask_bt"].astype(bool)
    for row, document in enumerate((pair["chosen"], pair["rejected"])):
        size = len(document["tokens"])
        unit["tokens_bt"][row, :size] = document["tokens"]
        unit["segment_ids_bt"][row, :size] = row + 1
        unit["positions_bt"][row, :size] = np.arange(size)
        unit["loss_mask_bt"][row, :size] = document["loss_mask"]
    return {**unit, "pairs_m": np.array([number], np.int32)}


def _batches(
    units: grain.IterDataset, batch_size: int, packing: bool, reference_m2: np.ndarray | None
) -> "grain.IterDataset[PairBatch]":
    units_a_batch = batch_size if packing else batch_size // 2

    def stack(units: Sequence[dict[str, np.ndarray]]) -> PairBatch:
        missing = units_a_batch - len(units)
        rows = {name: np.concatenate([unit[name] for unit in units]) for name in _ROWS}
        rows = {name: np.pad(array, [(0, batch_size - len(array)), (0, 0)]) for name, array in rows.items()}
        pairs_um = np.stack([unit["pairs_m"] for unit in units])
        pairs_um = np.pad(pairs_um, [(0, missing), (0, 0)], constant_values=-1)
        batch = cast(PairBatch, {**rows, "pairs_um": pairs_um})
        if reference_m2 is not None:
            batch["reference_um2"] = np.where(pairs_um[..., None] >= 0, reference_m2[pairs_um], np.float32(0))
        return batch

    return units.batch(units_a_batch, batch_fn=stack)

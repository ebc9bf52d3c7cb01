"""Packs preference pairs into rows. Both documents of a pair are always in one batch.

A batch consists of units, the smallest parts that hold complete pairs. With packing a unit is one row with as many
pairs as fit: segment ids 1 and 2 are the first pair's chosen and rejected document, 3 and 4 the second pair's. Without
packing a unit is two rows: the chosen document has segment id 1, the rejected one 2.

Shapes: b row, t position, u unit, m pair within a unit (the most that fit).
"""

from collections.abc import Iterable, Sequence
from typing import cast

import grain
import numpy as np
from grain import experimental
from jaxtyping import Float32, Int64

from aligner_jax.data.batch import PairBatch, filled
from aligner_jax.data.epochs import Epochs
from aligner_jax.data.pairs import Pair
from aligner_jax.data.pipeline import IN_THIS_THREAD, WINDOW
from aligner_jax.errors import InputError


def train_pair_batches(
    pairs: Sequence[Pair],
    *,
    batch_size: int,
    sequence_length: int,
    seed: int,
    packing: bool = True,
    reference_t: Float32[np.ndarray, " t"] | None = None,
) -> "grain.DatasetIterator[PairBatch]":
    """Returns an endless iterator of training batches, as `pipeline.train_batches` does.

    Each epoch has all pairs once, in a new order.

    Args:
      pairs: pairs from `tokenize_pairs` with the same `sequence_length` and `packing`.
      batch_size: rows per batch. Without packing it must be even, since a pair is two rows.
      sequence_length: tokens per row.
      seed: seed of the order.
      packing: True packs as many complete pairs as fit into a row; False gives every document its own row.
      reference_t: log-probabilities of all pairs' tokens under the reference model, in the order of `offsets`; they
        become the batches' `reference_bt`.

    Returns:
      An iterator with `get_state()` and `set_state()`, like that of `pipeline.train_batches`.

    Raises:
      InputError: there are no pairs, one does not fit, or `batch_size` is odd without packing.
    """
    _check(pairs, batch_size, sequence_length, packing)
    stream = grain.MapDataset.source(Epochs(range(len(pairs)), seed))
    tokens = sum(len(pair["chosen"]["tokens"]) + len(pair["rejected"]["tokens"]) for pair in pairs)
    window = min(WINDOW, -(-tokens // sequence_length))
    units = _units(stream, _Pieces(pairs, reference_t), sequence_length, window if packing else None, seed)
    return iter(_batches(units, batch_size, sequence_length, packing))


def eval_pair_batches(
    pairs: Sequence[Pair],
    *,
    batch_size: int,
    sequence_length: int,
    packing: bool = True,
    reference_t: Float32[np.ndarray, " t"] | None = None,
) -> Iterable[PairBatch]:
    """Returns batches of all pairs, once and in order from batch to batch; padding rows fill the last batch.

    The result can be iterated repeatedly. Args and Raises are those of `train_pair_batches`.
    """
    _check(pairs, batch_size, sequence_length, packing)
    stream = grain.MapDataset.source(range(len(pairs)))
    units = _units(stream, _Pieces(pairs, reference_t), sequence_length, batch_size if packing else None, None)
    return cast(Iterable[PairBatch], _batches(units, batch_size, sequence_length, packing))


def offsets(pairs: Sequence[Pair]) -> Int64[np.ndarray, " m+1"]:
    """Returns the offset of each pair in the concatenated tokens of all pairs, and the total length as last entry.

    A pair's tokens are those of the chosen document, then those of the rejected one.
    """
    sizes = [len(pair["chosen"]["tokens"]) + len(pair["rejected"]["tokens"]) for pair in pairs]
    return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])


def _check(pairs: Sequence[Pair], batch_size: int, sequence_length: int, packing: bool) -> None:
    if not pairs:
        raise InputError("there are no preference pairs to make rows of")
    if batch_size % PairBatch.rows_per_unit(packing):
        raise InputError(f"a batch of {batch_size} rows cannot hold whole pairs, since a pair is two rows")
    lengths = ((len(pair["chosen"]["tokens"]), len(pair["rejected"]["tokens"])) for pair in pairs)
    longest = max(sum(both) if packing else max(both) for both in lengths)
    if longest > sequence_length:
        raise InputError(f"a {'pair' if packing else 'document'} has {longest} tokens and a row {sequence_length}")


def _units(
    stream: grain.MapDataset, pieces: "_Pieces", sequence_length: int, window: int | None, seed: int | None
) -> grain.IterDataset:
    """Returns units of a stream of pair indices: dicts of [rows, t] arrays and pairs_m. window None packs nothing."""
    if window is None:
        return stream.map(lambda number: _two_rows(pieces[number], sequence_length)).to_iter_dataset(IN_THIS_THREAD)
    packed = experimental.FirstFitPackIterDataset(
        stream.map(pieces.__getitem__).to_iter_dataset(IN_THIS_THREAD),
        length_struct={
            **dict.fromkeys(pieces.names, sequence_length),
            "number": PairBatch.sizes(batch_size=1, sequence_length=sequence_length, packing=True)["m"],
        },
        num_packing_bins=window,
        shuffle_bins=seed is not None,
        seed=seed or 0,
    )
    return packed.map(lambda row: _packed_row(row, pieces.names))


class _Pieces:
    """Pairs by index, each as one stretch of a row. Its "number" is index + 1, since the packer pads with 0."""

    def __init__(self, pairs: Sequence[Pair], reference_t: np.ndarray | None):
        self._pairs, self._reference_t = pairs, reference_t
        self._offsets = None if reference_t is None else offsets(pairs)
        self.names = [name for name in self[0] if name != "number"]

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        pair = self._pairs[number]
        both = pair["chosen"], pair["rejected"]
        sizes = [len(document["tokens"]) for document in both]
        piece = {
            "tokens_bt": np.concatenate([document["tokens"] for document in both]),
            "segment_ids_bt": np.repeat(np.array([1, 2], np.int32), sizes),
            "positions_bt": np.concatenate([np.arange(size, dtype=np.int32) for size in sizes]),
            "loss_mask_bt": np.concatenate([document["loss_mask"] for document in both]),
            "number": np.array([number + 1], np.int32),
        }
        if self._reference_t is not None and self._offsets is not None:
            piece["reference_bt"] = self._reference_t[self._offsets[number] : self._offsets[number + 1]]
        return piece


def _packed_row(row: dict[str, np.ndarray], names: list[str]) -> dict[str, np.ndarray]:
    sides, places = row["segment_ids_bt"], row["segment_ids_bt_segment_ids"]
    segments = np.where(sides > 0, 2 * (places - 1) + sides, 0).astype(np.int32)
    rows = {name: row[name][None] for name in names}
    return {**rows, "segment_ids_bt": segments[None], "pairs_m": row["number"] - 1}


def _two_rows(piece: dict[str, np.ndarray], sequence_length: int) -> dict[str, np.ndarray]:
    chosen, rejected = (piece["segment_ids_bt"] == side for side in (1, 2))

    def rows(array: np.ndarray) -> np.ndarray:
        parts = array[chosen], array[rejected]
        return np.stack([np.pad(part, (0, sequence_length - len(part))) for part in parts])

    number = piece["number"]
    return {**{name: rows(array) for name, array in piece.items() if name != "number"}, "pairs_m": number - 1}


def _batches(
    units: grain.IterDataset, batch_size: int, sequence_length: int, packing: bool
) -> "grain.IterDataset[PairBatch]":
    sizes = PairBatch.sizes(batch_size=batch_size, sequence_length=sequence_length, packing=packing)

    def stack(units: Sequence[dict[str, np.ndarray]]) -> PairBatch:
        names = [name for name in units[0] if name != "pairs_m"]
        rows = {name: np.concatenate([unit[name] for unit in units]) for name in names}
        return filled(
            PairBatch, {**rows, "pairs_um": np.stack([unit["pairs_m"] for unit in units])}, sizes, packed=packing
        )

    return units.batch(sizes["u"], batch_fn=stack)

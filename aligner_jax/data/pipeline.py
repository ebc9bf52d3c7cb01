"""Packs documents into batches of fixed-length rows with Grain.

Training batches are endless and shuffled; evaluation batches hold every document once, in order.
"""

from collections.abc import Iterable, Sequence
from typing import cast

import grain
import numpy as np
from grain import experimental

from aligner_jax.data.batch import Batch, filled
from aligner_jax.data.documents import Document, Summary, tokenize_examples
from aligner_jax.data.epochs import Epochs
from aligner_jax.errors import InputError

__all__ = ["Batch", "Document", "Summary", "eval_batches", "fill", "packing_fill", "tokenize_examples", "train_batches"]

WINDOW = 64
"""Rows packed together. A larger window fills rows better; a resumed run packs up to a window again."""
IN_THIS_THREAD = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)


def train_batches(
    documents: Sequence[Document], *, batch_size: int, sequence_length: int, seed: int, packing: bool = True
) -> "grain.DatasetIterator[Batch]":
    """Returns an endless iterator of training batches.

    Each epoch has all documents once, uncut, in a new order that depends only on the seed and the number of documents.
    Rows are packed from the stream of documents, so a row at the border of two epochs may hold documents of both.

    Args:
      documents: documents from `tokenize_examples`.
      batch_size: rows per batch.
      sequence_length: tokens per row.
      seed: seed of the order; different seeds give unrelated orders.
      packing: False gives every document its own row.

    Returns:
      An iterator whose `get_state()` is JSON-serializable. An iterator made from the same arguments continues with the
      same batches, bit for bit, after `set_state()`. It starts no threads or processes.

    Raises:
      InputError: there are no documents, or one is longer than a row.
    """
    _check(documents, sequence_length)
    stream = grain.MapDataset.source(Epochs(documents, seed))
    tokens = sum(len(document["tokens"]) for document in documents)
    window = min(WINDOW, -(-tokens // sequence_length))
    rows = _rows(stream, sequence_length, window if packing else None, seed)
    return iter(_batches(rows, batch_size, sequence_length, packing))


def eval_batches(
    documents: Sequence[Document], *, batch_size: int, sequence_length: int, packing: bool = True
) -> list[Batch]:
    """Returns batches of all documents, once and in order from batch to batch; padding rows fill the last batch.

    Args and Raises are those of `train_batches`.
    """
    _check(documents, sequence_length)
    stream = grain.MapDataset.source(documents)
    rows = _rows(stream, sequence_length, batch_size if packing else None, None)
    return list(cast(Iterable[Batch], _batches(rows, batch_size, sequence_length, packing)))


def fill(batch: Batch) -> float:
    """Returns the share of a batch's positions that hold a token."""
    return float(np.mean(batch.segment_ids_bt > 0))


def packing_fill(documents: Sequence[Document], *, sequence_length: int, seed: int = 0, packing: bool = True) -> float:
    """Returns the share of positions that hold a token, over the first 256 training rows.

    An epoch takes `tokens / (packing_fill · sequence_length)` rows.
    """
    rows = train_batches(documents, batch_size=1, sequence_length=sequence_length, seed=seed, packing=packing)
    return float(np.mean([fill(next(rows)) for _ in range(4 * WINDOW)]))


def _check(documents: Sequence[Document], sequence_length: int) -> None:
    if not documents:
        raise InputError("there are no documents to make rows of")
    longest = max(len(document["tokens"]) for document in documents)
    if longest > sequence_length:
        raise InputError(f"a document has {longest} tokens and a row {sequence_length}")


def _rows(
    stream: grain.MapDataset, sequence_length: int, window: int | None, row_seed: int | None
) -> grain.IterDataset:
    """Returns rows as dicts of [t] arrays. Without window nothing is packed; without row_seed rows keep their order."""
    if window is None:
        return stream.map(lambda document: _alone(document, sequence_length)).to_iter_dataset(IN_THIS_THREAD)
    packed = experimental.FirstFitPackIterDataset(
        stream.to_iter_dataset(IN_THIS_THREAD),
        length_struct={"tokens": sequence_length, "loss_mask": sequence_length},
        num_packing_bins=window,
        shuffle_bins=row_seed is not None,
        seed=row_seed or 0,
    )
    return packed.map(
        lambda row: {
            "tokens_bt": row["tokens"],
            "segment_ids_bt": row["tokens_segment_ids"],
            "positions_bt": row["tokens_positions"],
            "loss_mask_bt": row["loss_mask"],
        }
    )


def _alone(document: Document, sequence_length: int) -> dict[str, np.ndarray]:
    size = len(document["tokens"])
    padding = (0, sequence_length - size)
    return {
        "tokens_bt": np.pad(document["tokens"], padding),
        "segment_ids_bt": np.pad(np.ones(size, np.int32), padding),
        "positions_bt": np.pad(np.arange(size, dtype=np.int32), padding),
        "loss_mask_bt": np.pad(document["loss_mask"], padding),
    }


def _batches(
    rows: grain.IterDataset, batch_size: int, sequence_length: int, packing: bool
) -> "grain.IterDataset[Batch]":
    sizes = Batch.sizes(batch_size=batch_size, sequence_length=sequence_length, packing=packing)

    def stack(rows: Sequence[dict[str, np.ndarray]]) -> Batch:
        return filled(Batch, {name: np.stack([row[name] for row in rows]) for name in rows[0]}, sizes, packed=packing)

    return rows.batch(batch_size, batch_fn=stack)

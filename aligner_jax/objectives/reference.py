"""The frozen reference of a preference objective (an adapter over the base), and tables of its log-probabilities."""

import dataclasses
import functools
import hashlib
import io
import json
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

import jax
import numpy as np
from jaxtyping import Array, Float, Float32

from aligner_jax.data.documents import digest
from aligner_jax.data.pair_rows import offsets
from aligner_jax.data.pairs import Pair, documents_of
from aligner_jax.errors import InputError, one_line
from aligner_jax.files.content import exists, open_file
from aligner_jax.files.json_text import parse_object
from aligner_jax.model.llama import LlamaConfig, Params
from aligner_jax.model.logical import replicated
from aligner_jax.objectives import preference
from aligner_jax.objectives.batch import PairBatch
from aligner_jax.peft import Adapter
from aligner_jax.peft.artifact import load_adapter
from aligner_jax.runtime.files import write_atomically
from aligner_jax.weights.base import Base

_MAX_OVERHEAD = 2**16


@functools.partial(jax.jit, static_argnames=("config",))
def _log_probs(params, adapter, batch, *, config):
    return replicated(preference.token_log_probs(params, adapter, batch, config=config))


def load_reference(name: str | None, base: Base, initial: Adapter) -> Adapter | None:
    """Returns the adapter that `config.objective.reference` names; None for the base alone.

    Args:
      name: "initial" for the adapter that training begins with; "base" or None for no adapter; or the path of a saved
        adapter.
      base: the base of the run.
      initial: the adapter that training begins with.

    Raises:
      InputError: the saved adapter is missing, damaged or of another base.
    """
    if name in (None, "base"):
        return None
    return initial if name == "initial" else load_adapter(name, base)


def token_log_probs(
    params: Params, adapter: Adapter | None, batch: PairBatch, *, config: LlamaConfig
) -> Float[Array, "b t"]:
    """Compiles and calls `preference.token_log_probs`.

    Policies and references share one program, so that equal adapters have bit-identical log-probabilities.
    """
    # Optional arrays change the batch's structure, which would compile another program.
    return _log_probs(params, adapter, dataclasses.replace(batch, reference_bt=None), config=config)


def table(
    params: Params,
    adapter: Adapter | None,
    batches: Iterable[PairBatch],
    pairs: Sequence[Pair],
    *,
    config: LlamaConfig,
) -> Float32[np.ndarray, " t"]:
    """Returns log-probabilities of all pairs' tokens, in the order of `pair_rows.offsets`.

    Args:
      params: parameters of the base.
      adapter: the reference; None for the base alone.
      batches: batches that contain every pair exactly once.
      pairs: the pairs.
      config: configuration of the base.
    """
    starts = offsets(pairs)
    found_t = np.full(starts[-1], np.nan, np.float32)
    for batch in batches:
        log_probs_bt = np.asarray(token_log_probs(params, adapter, batch, config=config))
        units = len(batch.pairs_um)
        log_probs_ut, segments_ut = (x.reshape(units, -1) for x in (log_probs_bt, batch.segment_ids_bt))
        for unit, place in np.argwhere(batch.pairs_um >= 0):
            number = batch.pairs_um[unit, place]
            here_t = (segments_ut[unit] + 1) // 2 == place + 1
            found_t[starts[number] : starts[number + 1]] = log_probs_ut[unit, here_t]
    return found_t


def fingerprint(base: Base, adapter: Adapter | None, pairs: Sequence[Pair]) -> dict[str, str]:
    """Returns the identities of a table's inputs: the base, the adapter, and the tokenized pairs."""
    return {
        "base": base.identity,
        "reference adapter": adapter_digest(adapter),
        "tokenized pairs": digest(documents_of(pairs)),
    }


def adapter_digest(adapter: Adapter | None) -> str:
    """Returns the SHA-256 of an adapter's method, options and arrays; of no bytes if the adapter is None."""
    digest = hashlib.sha256()
    if adapter is not None:
        digest.update(adapter.identity.encode())
        for name, leaf in sorted(adapter.trainable.items()):
            array = np.asarray(leaf)
            digest.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def save_table(path: Path, table_t: Float32[np.ndarray, " t"], digests: dict[str, str]) -> None:
    """Writes a table and its fingerprint as .npz, atomically.

    Raises:
      InputError: the file cannot be written.
    """
    content = io.BytesIO()
    np.savez(content, log_probs_t=table_t, fingerprint=json.dumps(digests))
    write_atomically(path, content.getvalue())


def load_table(
    path: Path, digests: dict[str, str], pairs: Sequence[Pair]
) -> tuple[Float32[np.ndarray, " t"] | None, str]:
    """Loads a table if its fingerprint is `digests`.

    Returns:
      The table and "", or None and the reason why it must be recomputed ("" if the file does not exist).
    """
    if not exists(path):
        return None, ""
    try:
        with open_file(path) as file:
            table_t, was = _read_table(file, int(offsets(pairs)[-1]))
    except Exception as error:  # zipfile and NumPy raise a dozen types for damaged files.
        return None, one_line(f"{path} is damaged ({error})")
    different = [name for name, digest in digests.items() if was.get(name) != digest]
    if different:
        return None, f"{path} was made with another {' and another '.join(different)}"
    if table_t.shape != (offsets(pairs)[-1],) or table_t.dtype != np.float32:
        return None, f"{path} is damaged (it holds no log-probabilities of {len(pairs):,} pairs)"
    return table_t, ""


def _read_table(file: BinaryIO, num_tokens: int) -> tuple[np.ndarray, dict[str, object]]:
    # Sizes are checked before NumPy allocates what an entry declares.
    with zipfile.ZipFile(file) as archive:
        sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
    if any(size > 4 * num_tokens + _MAX_OVERHEAD for size in sizes.values()):
        raise InputError("it is larger than the pairs need")
    with np.load(file, allow_pickle=False) as entries:
        return entries["log_probs_t"], parse_object(str(entries["fingerprint"]), "its fingerprint")

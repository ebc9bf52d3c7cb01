"""The frozen reference of a preference objective: an adapter over the same base, and what it thinks of the answers."""

import hashlib
import io
import json
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import cast

import jax
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from aligner_jax.data.pair_rows import PairBatch
from aligner_jax.data.pairs import Pair
from aligner_jax.model.llama import LlamaConfig, Params
from aligner_jax.objectives import preference
from aligner_jax.peft import Adapter
from aligner_jax.peft.artifact import load_adapter
from aligner_jax.runtime.files import write_atomically
from aligner_jax.weights.base import Base

_log_probs = jax.jit(preference.log_probs, static_argnames=("config",))


def load_reference(name: str | None, base: Base, initial: Adapter) -> Adapter | None:
    """The adapter that `config.objective.reference` names; None is the base alone.

    Args:
      name: "initial": the adapter that training begins with; "base" or None: no adapter; or a saved adapter's path.
      initial: that adapter.

    Raises:
      InputError: the saved adapter is missing, damaged or of another base.
    """
    if name in (None, "base"):
        return None
    return initial if name == "initial" else load_adapter(name, base)


def answer_log_probs(
    params: Params, adapter: Adapter | None, batch: PairBatch, *, config: LlamaConfig
) -> tuple[Float[Array, "u m 2"], Int[Array, "u m 2"]]:
    """`preference.log_probs` compiled: one program for policies and references, so that equal ones give equal bits."""
    # What a batch may carry besides makes another structure, hence another program.
    rows = {name: array for name, array in batch.items() if name != "reference_um2"}
    return _log_probs(params, adapter, cast(PairBatch, rows), config=config)


def table(
    params: Params, adapter: Adapter | None, batches: Iterable[PairBatch], count: int, *, config: LlamaConfig
) -> Float32[np.ndarray, "m 2"]:
    """Log-probabilities of the chosen and rejected answers of all `count` pairs, from batches that hold each once."""
    found_m2 = np.full((count, 2), np.nan, np.float32)
    for batch in batches:
        log_probs_um2, _ = answer_log_probs(params, adapter, batch, config=config)
        there_um = batch["pairs_um"] >= 0
        found_m2[batch["pairs_um"][there_um]] = np.asarray(log_probs_um2)[there_um]
    return found_m2


def fingerprint(base: Base, adapter: Adapter | None, pairs: Sequence[Pair]) -> dict[str, str]:
    """What a table depends on, each part as a digest: the base and its dtype, the adapter, and the tokenized pairs."""
    of_adapter, of_pairs = hashlib.sha256(), hashlib.sha256()
    if adapter is not None:
        of_adapter.update(str(adapter).encode())
        for name, leaf in sorted(adapter.trainable.items()):
            array = np.asarray(leaf)
            of_adapter.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    for pair in pairs:
        for document in (pair["chosen"], pair["rejected"]):
            tokens = document["tokens"]
            of_pairs.update(len(tokens).to_bytes(8) + tokens.tobytes() + document["loss_mask"].tobytes())
    return {
        "base": f"{base.fingerprint} {base.params.embed_vd.dtype}",
        "reference adapter": of_adapter.hexdigest(),
        "tokenized pairs": of_pairs.hexdigest(),
    }


def save_table(path: Path, table_m2: Float32[np.ndarray, "m 2"], made_from: dict[str, str]) -> None:
    """Writes a table with its fingerprint as .npz, whole or not at all.

    Raises:
      InputError: it cannot be written.
    """
    content = io.BytesIO()
    np.savez(content, log_probs_m2=table_m2, fingerprint=json.dumps(made_from))
    write_atomically(path, content.getvalue())


def load_table(path: Path, made_from: dict[str, str]) -> tuple[Float32[np.ndarray, "m 2"] | None, str]:
    """A saved table if it was made from the same; else None, and why in words ("" where there is no file)."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            table_m2, was = file["log_probs_m2"], json.loads(str(file["fingerprint"]))
    except FileNotFoundError:
        return None, ""
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
        return None, f"{path} is damaged ({error})"
    different = [name for name, digest in made_from.items() if was.get(name) != digest]
    if different:
        return None, f"{path} was made with another {' and another '.join(different)}"
    return table_m2, ""

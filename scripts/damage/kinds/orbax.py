"""Bases in Orbax's format: a tiny model with its vocabulary, with digests and as earlier releases wrote it."""

import json
import logging
import os
import random
import tempfile
from pathlib import Path

import jax
import numpy as np
from tokenizers import Tokenizer, decoders, models

from aligner_jax.model.config import LlamaConfig, RopeScaling
from aligner_jax.weights import orbax
from aligner_jax.weights.base import load_base
from aligner_jax.weights.leaves import leaf_specs
from scripts.damage.kinds.kind import Files, Kind, digest
from scripts.damage.kinds.mutations import VALUES, of_bytes, of_json, one_file

_CONFIG = LlamaConfig(
    vocab_size=40, d_model=8, d_mlp=24, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=4, context_length=32,
    rope_scaling=RopeScaling(8.0, 1.0, 4.0, 16), qkv_bias=True,
)  # fmt: skip


def samples() -> list[Files]:
    """Returns the same base with and without digests, in float32 and in bfloat16."""
    # A separate process writes the samples, since TensorStore's threads would not survive the driver's fork.
    with tempfile.TemporaryDirectory() as folder:
        child = os.fork()
        if child == 0:
            os._exit(_write(Path(folder)))
        if os.waitpid(child, 0)[1]:
            raise SystemExit("the samples of a base in Orbax's form cannot be written")
        found: list[Files] = []
        for dtype in ("float32", "bfloat16"):
            base = Path(folder) / dtype
            files = {path.relative_to(base).as_posix(): path.read_bytes() for path in base.rglob("*") if path.is_file()}
            index = json.loads(files["base.json"])
            del index["digests"]
            found += [files, {**files, "base.json": json.dumps(index).encode()}]
        return found


def _write(folder: Path) -> int:
    # Orbax warns of chunks as small as these.
    logging.getLogger("absl").setLevel(logging.ERROR)
    rng = np.random.default_rng(0)
    orbax._BLOCK_BYTES, orbax._CHUNK_BYTES = 1, 256
    specs = leaf_specs(_CONFIG)
    for dtype, numbers in orbax.DTYPES.items():
        leaves = {leaf: rng.normal(size=spec.shape).astype(numbers) for leaf, spec in specs.items()}
        tokenizer = {"tokenizer.json": _tokenizer(), "tokenizer_config.json": b'{"bos_token": "<s>"}'}
        orbax.write_orbax(
            folder / dtype, _CONFIG, lambda leaf, indexes, of=leaves: [of[leaf][tuple(i)] for i in indexes],
            dtype, tokenizer,
        )  # fmt: skip
    return 0


def _tokenizer() -> bytes:
    made = Tokenizer(models.BPE(vocab={"<s>": 0, "</s>": 1, "a": 2, "b": 3, "ab": 4}, merges=[("a", "b")]))
    made.add_special_tokens(["<s>", "</s>"])
    made.decoder = decoders.ByteLevel()
    return made.to_str().encode()


def mutate(rng: random.Random, files: Files) -> Files:
    """Changes the index, a file's bytes, the set of files, or their places."""
    names, change = sorted(files), rng.randrange(10)
    index = json.loads(files["base.json"])
    blocks = [name for name in names if name.startswith("params/")]
    if change < 3:
        section = rng.choice(("config", "blocks", "files", "digests", ""))
        if section not in index:
            return one_file(rng, dict(files), of_json, "base.json")
        changed = of_json(rng, json.dumps(index[section]).encode())
        return {**files, "base.json": json.dumps(index).encode().replace(json.dumps(index[section]).encode(), changed)}
    if change < 6:
        return one_file(rng, dict(files), of_bytes, rng.choice(blocks))
    if change == 6:
        # The folder also has files whose names do not say their content: arrays' bytes and small files.
        return one_file(rng, dict(files), of_bytes, rng.choice(names))
    if change == 7:
        one, other = rng.sample(blocks, 2)
        return {**files, one: files[other], other: files[one]}
    if change == 8:
        return _swapped(rng, files)
    if rng.randrange(2):
        return {name: content for name, content in files.items() if name != rng.choice(names)}
    added = rng.choice(("params/x", "tokenizer/added_tokens.json", "tokenizer/tokenizer.model", "config.json", "x/y"))
    return {**files, added: json.dumps(rng.choice(VALUES)).encode()}


def _swapped(rng: random.Random, files: Files) -> Files:
    """Swaps the folders of two blocks, or of two leaves, with or without updating the index."""
    folders = sorted({"/".join(name.split("/")[:3]) + "/" for name in files if name.startswith("params/")})
    one, other = rng.sample(folders, 2)
    moved = {}
    for name, content in files.items():
        folder = "/".join(name.split("/")[:3]) + "/"
        moved[name.replace(folder, {one: other, other: one}.get(folder, folder))] = content
    if rng.randrange(2):
        index = json.loads(moved["base.json"])
        index["files"] = {name: len(content) for name, content in moved.items() if name != "base.json"}
        moved["base.json"] = json.dumps(index).encode()
    return moved


def read(folder: Path) -> str:
    """Returns a digest of the configuration, every parameter and some ids."""
    # Imported here because the driver is a script that imports this file.

    base = load_base(folder)
    ids = None if base.tokenizer is None else base.tokenizer.encode("ab ba")
    leaves = jax.tree_util.tree_leaves_with_path(base.params)
    return digest(
        base.config, ids, *(each for path, leaf in leaves for each in (jax.tree_util.keystr(path), np.asarray(leaf)))
    )


def may_differ(sample: Files, damaged: Files) -> bool:
    """Returns True for a base without digests, whose sizes and shapes alone can show a difference."""
    return b'"digests"' not in sample["base.json"]


KIND = Kind("orbax", samples, mutate, read, may_differ)

"""Writes a folded base as a folder that transformers loads without code of its own."""

import json
from collections.abc import Mapping
from pathlib import Path

from aligner_jax.data.tokenizer import Tokenizer
from aligner_jax.exports.folded import folded_parts
from aligner_jax.exports.job import Job
from aligner_jax.files.json_text import parse_object
from aligner_jax.weights.hf_write import architecture_of, write_hf
from aligner_jax.weights.safetensors_write import SHARD_BYTES

_IDS: tuple[str, ...] = ("bos_token_id", "eos_token_id", "pad_token_id")
_READ_BY_TRANSFORMERS = ("tokenizer.json", "tokenizer.model")


def export_hf(job: Job, folder: Path, shard_bytes: int = SHARD_BYTES) -> list[str]:
    """Writes weights, config.json, generation_config.json, and the tokenizer's files with its chat template.

    Args:
      job: adapters that can be folded, over their base.
      folder: existing folder.
      shard_bytes: most bytes in a file of weights.

    Returns:
      Sentences for the user.

    Raises:
      InputError: an adapter cannot be folded (`Unfoldable`), or the base's files cannot be read.
    """
    fold, files = job.fold, job.base.tokenizer_files()
    parts = folded_parts(job.base, fold, job.dtype)
    ids = _token_ids(files, job.base.tokenizer)
    write_hf(folder, fold.folded_config, parts, job.dtype, ids=ids, shard_bytes=shard_bytes)
    generation = {name: value for name, value in ids.items() if value is not None}
    files = {"generation_config.json": (json.dumps(generation, indent=2) + "\n").encode(), **files}
    for name, content in files.items():
        if name != "config.json":
            (folder / name).write_bytes(content)
    return [*_about_architecture(job), *_about_tokenizer(files)]


def _token_ids(files: Mapping[str, bytes], tokenizer: Tokenizer | None) -> dict[str, object]:
    """Returns the ids of BOS, EOS and padding: those of the base's config.json, else those of its tokenizer."""
    if "config.json" in files:
        source = parse_object(files["config.json"].decode(), "config.json")
        return {name: source.get(name) for name in _IDS}
    if tokenizer is None:
        return {}
    eos = sorted(tokenizer.stop_ids - {tokenizer.eos_id})
    ends = tokenizer.eos_id if not eos else [i for i in (tokenizer.eos_id, *eos) if i is not None]
    return {"bos_token_id": tokenizer.bos_id, "eos_token_id": ends, "pad_token_id": None}


def _about_architecture(job: Job) -> list[str]:
    config = job.fold.folded_config
    if architecture_of(config) == "qwen2":
        return ["architecture: Qwen2ForCausalLM, a LLaMA with biases of queries, keys and values alone"]
    added = config.o_bias and not config.qkv_bias
    zeros = ", whose biases of queries, keys and values are zero" if added else ""
    return [f"architecture: LlamaForCausalLM{zeros}"]


def _about_tokenizer(files: Mapping[str, bytes]) -> list[str]:
    if any(name in files for name in _READ_BY_TRANSFORMERS):
        return []
    if "tokenizer.gguf" in files:
        return [
            "tokenizer: this project reads tokenizer.gguf; for transformers copy tokenizer.json and "
            "tokenizer_config.json of the original model into the folder"
        ]
    return ["tokenizer: the base has none; copy the files of the original model's into the folder"]

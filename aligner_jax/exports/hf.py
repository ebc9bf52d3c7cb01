"""Writes a folded base as a folder that transformers loads without code of its own."""

import json
from collections.abc import Mapping
from pathlib import Path

from aligner_jax.data.tokenizer import Tokenizer
from aligner_jax.data.tokenizer_transformers import transformers_files
from aligner_jax.exports.folded import folded_parts
from aligner_jax.exports.job import Job
from aligner_jax.exports.source import StoredBase
from aligner_jax.files.json_text import parse_object
from aligner_jax.weights.hf_write import architecture_of, write_hf
from aligner_jax.weights.safetensors_write import SHARD_BYTES

_IDS: tuple[str, ...] = ("bos_token_id", "eos_token_id", "pad_token_id")


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
    fold, files = job.fold, tokenizer_folder_files(job.base)
    parts = folded_parts(job.base, fold, job.dtype)
    ids = _token_ids(files, job.base.tokenizer)
    write_hf(folder, fold.folded_config, parts, job.dtype, ids=ids, shard_bytes=shard_bytes)
    generation = {name: value for name, value in ids.items() if value is not None}
    files = {"generation_config.json": (json.dumps(generation, indent=2) + "\n").encode(), **files}
    for name, content in files.items():
        if name != "config.json":
            (folder / name).write_bytes(content)
    return [*_about_architecture(job), *_about_tokenizer(files)]


def tokenizer_folder_files(base: StoredBase) -> dict[str, bytes]:
    """Returns the contents, by name, of the files that an exported folder has of the base's tokenizer.

    These are the base's own, and those that transformers needs (`transformers_files`) if it cannot read them.
    """
    files = base.tokenizer_files()
    if base.tokenizer is not None and not _has_vocabulary(files):
        files |= transformers_files(base.tokenizer)
    return files


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


def _has_vocabulary(files: Mapping[str, bytes]) -> bool:
    """Returns True if the files hold a vocabulary that transformers reads."""
    return any(name in files for name in ("tokenizer.json", "tokenizer.model"))


def _about_tokenizer(files: Mapping[str, bytes]) -> list[str]:
    if not _has_vocabulary(files):
        lacks = "the base has none" if "tokenizer.gguf" not in files else "transformers cannot hold the base's"
        return [f"tokenizer: {lacks}; copy the files of the original model's into the folder"]
    if "tokenizer.gguf" in files:
        return [
            "tokenizer: tokenizer.json, made from the vocabulary of the GGUF file; this project reads tokenizer.gguf"
        ]
    return []

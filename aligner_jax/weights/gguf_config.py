"""GGUF metadata as a `LlamaConfig`, and refusal of what is not a LLaMA in all but name."""

import dataclasses
from pathlib import Path

import numpy as np

from aligner_jax.data.gguf_metadata import GGUFHeader
from aligner_jax.errors import InputError
from aligner_jax.model.config import LlamaConfig, RopeScaling
from aligner_jax.model.rope import inverse_frequencies

_ARCHITECTURES = ("llama", "qwen2")
_LLAMA3_CONTEXT = 8192


def is_interleaved(header: GGUFHeader) -> bool:
    """Whether the rows of q and k have the two halves of each head interleaved, as llama.cpp's LLaMA has them."""
    return header.fields.get("general.architecture") == "llama"


def gguf_config(path: Path, header: GGUFHeader, rope_factors: np.ndarray | None) -> LlamaConfig:
    """The configuration in a GGUF file's metadata and tensor table.

    Args:
      path: of the file, for messages.
      rope_factors: the tensor rope_freqs.weight [h/2], which divides the rotary frequencies, if the file has one.

    Raises:
      InputError: metadata is missing or absurd, or the model computes something that `LlamaConfig` cannot say.
    """
    fields = _Fields(path, header)
    if "token_embd.weight" not in header.tensors:
        raise InputError(f"{path}: tensor token_embd.weight is missing")
    fields.refuse_other_mathematics()
    d_model, num_heads = fields.integer("embedding_length"), fields.integer("attention.head_count")
    try:
        config = LlamaConfig(
            vocab_size=header.tensors["token_embd.weight"].shape[-1],
            d_model=d_model,
            d_mlp=fields.integer("feed_forward_length"),
            num_layers=fields.integer("block_count"),
            num_heads=num_heads,
            num_kv_heads=fields.integer("attention.head_count_kv", num_heads),
            head_dim=fields.integer("attention.key_length", max(1, d_model // num_heads)),
            context_length=fields.integer("context_length", 2048),
            rope_theta=fields.number("rope.freq_base", 10_000.0),
            norm_eps=fields.number("attention.layer_norm_rms_epsilon"),
            tied_embeddings="output.weight" not in header.tensors,
            qkv_bias="blk.0.attn_q.bias" in header.tensors,
            o_bias="blk.0.attn_output.bias" in header.tensors,
        )
    except InputError as error:
        message = str(error)
        raise (error if message.startswith(str(path)) else InputError(f"{path}: {message}")) from None
    fields.refuse_other_heads(config.head_dim)
    if rope_factors is None:
        return config
    original = fields.integer("rope.scaling.original_context_length", _LLAMA3_CONTEXT)
    return dataclasses.replace(config, rope_scaling=_scaling(path, config, rope_factors, original))


def _scaling(path: Path, config: LlamaConfig, factors: np.ndarray, original: int) -> RopeScaling | None:
    """The llama3 scaling with exactly these factors: a GGUF file holds its result only, not its parameters."""
    if factors.size == config.head_dim // 2:
        if np.all(factors == 1.0):
            return None
        scaling = RopeScaling(float(factors.max()), 1.0, 4.0, original)
        scaled = inverse_frequencies(dataclasses.replace(config, rope_scaling=scaling))
        if np.allclose(inverse_frequencies(config) / scaled, factors, rtol=1e-5, atol=0.0):
            return scaling
    raise InputError(f"{path}: tensor rope_freqs.weight is not the scaling of LLaMA 3.1, the only one supported")


class _Fields:
    """Typed access to the metadata of one architecture, with errors that name the file and the key."""

    def __init__(self, path: Path, header: GGUFHeader):
        self.path, self.fields = path, header.fields
        architecture = self.fields.get("general.architecture")
        if architecture not in _ARCHITECTURES:
            raise InputError(
                f"{path}: general.architecture is {architecture!r}, not one of {', '.join(_ARCHITECTURES)}"
            )
        self.prefix = f"{architecture}."

    def get(self, key: str) -> object:
        return self.fields.get(self.prefix + key)

    def error(self, key: str, problem: str) -> InputError:
        return InputError(f"{self.path}: {self.prefix}{key} {problem}")

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise self.error(key, "is missing" if value is None else f"is {value!r}, not a positive integer")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise self.error(key, "is missing" if value is None else f"is {value!r}, not a positive number")
        # Stored as float32: 1e-5 must come back as the 1e-5 that config.json has, for equal models to be equal.
        return float(str(np.float32(value)))

    def refuse_other_mathematics(self) -> None:
        if self.get("expert_count"):
            raise self.error("expert_count", f"is {self.get('expert_count')!r}: mixtures of experts are not supported")
        scaling = self.get("rope.scaling.type")
        if scaling not in (None, "none") and self.get("rope.scaling.factor") != 1.0:
            raise self.error("rope.scaling.type", f"is {scaling!r}; of the rotary scalings only llama3 is supported")
        if self.get("attention.sliding_window"):
            window, context = self.integer("attention.sliding_window"), self.integer("context_length", 2048)
            if window < context:
                raise self.error(
                    "attention.sliding_window",
                    f"is {window}, less than the context of {context}: windows are not supported",
                )
        split = self.fields.get("split.count")
        if isinstance(split, int) and split > 1:
            raise InputError(f"{self.path} is one of {split} parts of a model: merge them with llama-gguf-split first")

    def refuse_other_heads(self, head_dim: int) -> None:
        for key in ("attention.value_length", "rope.dimension_count"):
            if self.integer(key, head_dim) != head_dim:
                raise self.error(key, f"is {self.get(key)!r}, but the heads of queries and keys have {head_dim}")

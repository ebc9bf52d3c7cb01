"""Writes a model as a Hugging Face folder, tensor by tensor, with the reader's table of names."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from aligner_jax.model.config import LlamaConfig
from aligner_jax.model.params import Params
from aligner_jax.weights.assemble import Parts
from aligner_jax.weights.fill import arranged, axes_of, groups_of
from aligner_jax.weights.hf import FORMAT
from aligner_jax.weights.leaves import DTYPES, leaf_specs
from aligner_jax.weights.safetensors_write import SHARD_BYTES, Tensor, write_model

Architecture = Literal["llama", "qwen2"]
"""Classes of transformers that can hold any model of this project: LlamaForCausalLM has biases in all four projections
of attention or in none, Qwen2ForCausalLM in queries, keys and values."""

QKV_BIASES = ("q_bias_lnh", "k_bias_lkh", "v_bias_lkh")


def write_hf_folder(folder: Path, config: LlamaConfig, params: Params) -> None:
    """Writes config.json and model.safetensors, in the parameters' dtype."""
    named = {**vars(params), **vars(params.layers)}

    def parts(leaf: str, indexes: Sequence[Sequence[slice]]) -> list[np.ndarray]:
        return [np.asarray(named[leaf][tuple(index)]) for index in indexes]

    folder.mkdir(parents=True, exist_ok=True)
    write_hf(folder, config, parts, str(params.embed_vd.dtype))


def write_hf(
    folder: Path,
    config: LlamaConfig,
    parts: Parts,
    dtype: str,
    *,
    ids: Mapping[str, object] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes config.json and the weights. The host holds one tensor at a time.

    Args:
      folder: existing folder.
      parts: reads the model's leaves in `dtype`.
      dtype: dtype of the tensors.
      ids: ids of BOS, EOS and padding, by their names in config.json; None leaves them null.
      shard_bytes: most bytes in a file of weights.

    Raises:
      InputError: see `parts`.
    """
    values = hf_fields(config, dtype) | dict(ids or {})
    write_model(folder, list(hf_tensors(config, parts, dtype)), DTYPES[dtype], shard_bytes)
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n")


def architecture_of(config: LlamaConfig) -> Architecture:
    """Returns "qwen2" for a model with biases in queries, keys and values alone, else "llama".

    The other biases of a model with a bias in its output projection are written as zeros if it lacks them.
    """
    return "qwen2" if config.qkv_bias and not config.o_bias else "llama"


def hf_fields(config: LlamaConfig, dtype: str) -> dict:
    """Returns the fields of config.json. The token ids of BOS, EOS and padding are null."""
    rope: dict = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.rope_scaling is not None:
        rope |= {
            "rope_type": "llama3",
            "factor": config.rope_scaling.factor,
            "low_freq_factor": config.rope_scaling.low_freq_factor,
            "high_freq_factor": config.rope_scaling.high_freq_factor,
            "original_max_position_embeddings": config.rope_scaling.original_context_length,
        }
    architecture = architecture_of(config)
    return {
        "architectures": [{"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}[architecture]],
        "model_type": architecture,
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_mlp,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": rope,
        "tie_word_embeddings": config.tied_embeddings,
        **({"attention_bias": config.o_bias} if architecture == "llama" else _no_window(config)),
        "hidden_act": "silu",
        "dtype": dtype,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }


def _no_window(config: LlamaConfig) -> dict:
    # candle requires all three fields and applies the window in any case, so it is as long as the context.
    return {
        "use_sliding_window": False,
        "sliding_window": config.context_length,
        "max_window_layers": config.num_layers,
    }


def hf_tensors(config: LlamaConfig, parts: Parts, dtype: str) -> Iterator[Tensor]:
    """Yields the tensors by Hugging Face name: one per layer, matrices as (out, in), heads joined.

    Tensors of a layer are adjacent. Projections without a bias have zeros where the architecture asks for one.
    """
    specs = leaf_specs(config)
    sizes = {"l": config.num_layers, "v": config.vocab_size, "d": config.d_model, "f": config.d_mlp} | {
        "n": config.num_heads, "k": config.num_kv_heads, "h": config.head_dim,
    }  # fmt: skip
    zeros = set(QKV_BIASES) - set(specs) if config.o_bias else set()

    def tensor(name: str, leaf: str, layout: str, layer: int | None) -> Tensor:
        shape = tuple(math.prod(sizes[axis] for axis in group) for group in groups_of(layout))

        def make() -> np.ndarray:
            if leaf in zeros:
                return np.zeros(shape, DTYPES[dtype])
            index = [slice(None)] * len(axes_of(leaf))
            if layer is None:
                return arranged(parts(leaf, [index])[0], axes_of(leaf), layout)
            index[0] = slice(layer, layer + 1)
            return arranged(parts(leaf, [index])[0][0], axes_of(leaf)[1:], layout)

        return Tensor(name, shape, make)

    slots = {name: slot for name, slot in FORMAT.slots.items() if slot.leaf in specs or slot.leaf in zeros}
    first = [name for name in slots if "{l}" not in name]
    yield from (tensor(name, slots[name].leaf, slots[name].layout, None) for name in first)
    for layer in range(config.num_layers):
        for name, slot in slots.items():
            if "{l}" in name:
                yield tensor(name.format(l=layer), slot.leaf, slot.layout, layer)

"""Writes a model as a Hugging Face folder, with the reader's table of names."""

import json
import math
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from aligner_jax.model.config import LlamaConfig
from aligner_jax.model.params import Params
from aligner_jax.weights.fill import axes_of, groups_of
from aligner_jax.weights.hf import FORMAT


def write_hf_folder(folder: Path, config: LlamaConfig, params: Params) -> None:
    """Writes config.json and model.safetensors, in the parameters' dtype, for transformers' LlamaForCausalLM.

    Raises:
      ValueError: only some attention projections have biases, which that class cannot express.
    """
    folder.mkdir(parents=True, exist_ok=True)
    values = hf_fields(config, str(params.embed_vd.dtype))
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n")
    save_file(hf_tensors(params), folder / "model.safetensors", metadata={"format": "pt"})


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
    if config.qkv_bias != config.o_bias:
        raise ValueError("LlamaForCausalLM has biases in all attention projections or in none")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
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
        "attention_bias": config.qkv_bias,
        "hidden_act": "silu",
        "dtype": dtype,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }


def hf_tensors(params: Params) -> dict[str, np.ndarray]:
    """Returns the tensors by Hugging Face name: one per layer, matrices as (out, in), heads joined."""
    tensors = {}
    for name, slot in FORMAT.slots.items():
        stacked = "{l}" in name
        leaf = getattr(params.layers if stacked else params, slot.leaf)
        axes = axes_of(slot.leaf)
        if leaf is None:
            continue
        if not stacked:
            tensors[name] = _stored(np.asarray(leaf), axes, slot.layout)
            continue
        for layer, x in enumerate(np.asarray(leaf)):
            tensors[name.format(l=layer)] = _stored(x, axes.removeprefix("l"), slot.layout)
    return tensors


def _stored(x: np.ndarray, axes: str, layout: str) -> np.ndarray:
    groups = groups_of(layout)
    sizes = dict(zip(axes, x.shape, strict=True))
    turned = x.transpose([axes.index(axis) for group in groups for axis in group])
    return np.ascontiguousarray(turned.reshape([math.prod(sizes[axis] for axis in group) for group in groups]))

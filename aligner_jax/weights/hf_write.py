"""Our parameters as a Hugging Face folder that transformers' LlamaForCausalLM reads; part of bench_ours.py."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from aligner_jax.model.config import LlamaConfig
from aligner_jax.model.params import Params

# Both sides keep the members of a rotary pair half a head apart, so that queries and keys need no permutation.
_MATRICES = {
    "self_attn.q_proj.weight": "q_ldnh",
    "self_attn.k_proj.weight": "k_ldkh",
    "self_attn.v_proj.weight": "v_ldkh",
    "mlp.gate_proj.weight": "gate_ldf",
    "mlp.up_proj.weight": "up_ldf",
    "mlp.down_proj.weight": "down_lfd",
}
_VECTORS = {
    "input_layernorm.weight": "attn_norm_ld",
    "post_attention_layernorm.weight": "mlp_norm_ld",
    "self_attn.q_proj.bias": "q_bias_lnh",
    "self_attn.k_proj.bias": "k_bias_lkh",
    "self_attn.v_proj.bias": "v_bias_lkh",
    "self_attn.o_proj.bias": "o_bias_ld",
}


def write_hf_folder(folder: Path, config: LlamaConfig, params: Params) -> None:
    """Writes config.json and model.safetensors, in the parameters' dtype."""
    folder.mkdir(parents=True, exist_ok=True)
    values = hf_config(config, str(params.embed_vd.dtype))
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n")
    save_file(hf_tensors(params), folder / "model.safetensors", metadata={"format": "pt"})


def hf_config(config: LlamaConfig, dtype: str) -> dict:
    """config.json's fields. No token ends a text: both sides make as many tokens as they are asked for."""
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
    """Tensors by their Hugging Face names: one a layer, matrices as (out, in), the heads joined."""
    tensors = {"model.embed_tokens.weight": np.asarray(params.embed_vd), "model.norm.weight": np.asarray(params.norm_d)}
    if params.head_dv is not None:
        tensors["lm_head.weight"] = np.ascontiguousarray(np.asarray(params.head_dv).T)
    stacks = vars(params.layers)
    output_lnhd = np.asarray(stacks["o_lnhd"])
    for l in range(output_lnhd.shape[0]):  # noqa: E741
        prefix = f"model.layers.{l}."
        for name, leaf in _MATRICES.items():
            matrix = np.asarray(stacks[leaf][l])
            tensors[prefix + name] = np.ascontiguousarray(matrix.reshape(matrix.shape[0], -1).T)
        for name, leaf in _VECTORS.items():
            if stacks[leaf] is not None:
                tensors[prefix + name] = np.asarray(stacks[leaf][l]).reshape(-1)
        d_model = output_lnhd.shape[-1]
        tensors[prefix + "self_attn.o_proj.weight"] = np.ascontiguousarray(output_lnhd[l].reshape(-1, d_model).T)
    return tensors

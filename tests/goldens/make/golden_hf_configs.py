"""Writes tests/goldens/hf_configs.npz: transformers' logits for settings in config.json, absent and null ones too.

    ENV/bin/python tests/goldens/make/golden_hf_configs.py    # the environment of make_goldens.py

The committed file comes from transformers 5.24.0 and torch 2.13.0, in float64. It holds:

- the weights of one tiny model, of which each case uses the slices that its configuration requires;
- `cases`, a JSON object from names to configurations and the shapes that transformers requires (or its error);
- by name, the logits of the last token of `ids`.
"""

import json
import logging
import math
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

OUT = Path(__file__).resolve().parents[1] / "hf_configs.npz"
LAYERS, D, F, N, H, VOCAB, LENGTH = 2, 16, 16, 8, 4, 32, 40

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SIZES = {
    "vocab_size": VOCAB, "hidden_size": D, "intermediate_size": F, "num_hidden_layers": LAYERS,
    "num_attention_heads": N, "num_key_value_heads": 2, "head_dim": H, "max_position_embeddings": 64,
}  # fmt: skip
ABSENT = "absent"

# Changes to SIZES by class; ABSENT removes a field.
CASES = {
    "llama": {
        "plain": {},
        "no context": {"max_position_embeddings": ABSENT},
        "no heads": {"head_dim": ABSENT, "hidden_size": 32},
        "null heads": {"head_dim": None, "hidden_size": 32},
        "no kv heads": {"num_key_value_heads": ABSENT},
        "null kv heads": {"num_key_value_heads": None},
        "epsilon": {"rms_norm_eps": 0.01},
        "theta": {"rope_theta": 100.0},
        "theta in parameters": {"rope_theta": 100.0, "rope_parameters": {"rope_theta": 50.0, "rope_type": "default"}},
        "parameters without a type": {"rope_parameters": {"rope_theta": 50.0}},
        "parameters without a theta": {"rope_theta": 100.0, "rope_parameters": {"rope_type": "default"}},
        "scaling and parameters": {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 16},
                                   "rope_parameters": {"rope_theta": 50.0}},
        "empty scaling and parameters": {"rope_scaling": {}, "rope_parameters": {"rope_theta": 50.0}},
        "factor without a type": {"rope_scaling": {"factor": 8.0}},
        "factor of the default type": {"rope_scaling": {"type": "default", "factor": 8.0}},
        "two types": {"rope_scaling": {"rope_type": "default", "type": "linear", "factor": 8.0}},
        "linear": {"rope_scaling": {"type": "linear", "factor": 4.0}},
        "dynamic": {"rope_scaling": {"type": "dynamic", "factor": 4.0}, "max_position_embeddings": 16},
        "yarn": {"rope_scaling": {"type": "yarn", "factor": 4.0}},
        "llama3": {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 16}},
        "llama3 with null type": {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 16, "type": None}},
        "llama3 without a context": {"rope_scaling": LLAMA3, "max_position_embeddings": 48},
        "llama3 with a context outside": {
            "rope_scaling": {**LLAMA3, "original_max_position_embeddings": 16}, "original_max_position_embeddings": 32,
        },
        "llama3 of a fallen range": {
            "rope_scaling": {**LLAMA3, "high_freq_factor": 0.5, "original_max_position_embeddings": 16},
        },
        "rope by layer": {
            "layer_types": ["full_attention"] * 2,
            "rope_parameters": {"full_attention": {"rope_theta": 50.0, "rope_type": "default"}},
        },
        "part of a head": {"partial_rotary_factor": 0.5},
        "part of a head in parameters": {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
        "biases": {"attention_bias": True},
        "biases of the mlp": {"mlp_bias": True},
        "tied": {"tie_word_embeddings": True},
        "tensor parallel": {"pretraining_tp": 2},
        "swish": {"hidden_act": "swish"},
        "gelu": {"hidden_act": "gelu"},
        "not causal": {"is_causal": False},
        "a window": {"sliding_window": 16},
        "a switched window": {"sliding_window": 16, "use_sliding_window": False},
        "full layers": {"layer_types": ["full_attention"] * 2},
        "windowed layers": {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 16},
        "layers that differ": {"per_layer_config": {"0": {"head_dim": 4, "num_key_value_heads": 1}}},
        "dropout": {"attention_dropout": 0.5},
        "granite": {"attention_multiplier": 0.5},
        "no multiplier": {"residual_multiplier": 1.0, "logits_scaling": 1.0},
    },
    "mistral": {
        "plain": {"sliding_window": None},
        "no window": {},
        "no window, no context": {"max_position_embeddings": ABSENT},
        "null window, no context": {"max_position_embeddings": ABSENT, "sliding_window": None},
        "a window": {"sliding_window": 16},
        "a window of the context": {"sliding_window": 64},
        "a switched window": {"sliding_window": 16, "use_sliding_window": False},
        "a window and full layers": {"sliding_window": 16, "layer_types": ["full_attention"] * 2},
        "biases": {"attention_bias": True, "sliding_window": None},
        "no kv heads": {"num_key_value_heads": ABSENT},
        "null heads": {"head_dim": None, "hidden_size": 32},
        "theta": {"rope_theta": 100.0},
    },
    "qwen2": {
        "plain": {},
        "no context": {"max_position_embeddings": ABSENT},
        "a window": {"sliding_window": 16},
        "a switched window": {"sliding_window": 16, "use_sliding_window": True},
        "a window in all layers": {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 0},
        "a window in one layer": {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 1},
        "no window in all layers": {"use_sliding_window": True, "max_window_layers": 0},
        "null window in all layers": {"sliding_window": None, "use_sliding_window": True, "max_window_layers": 0},
        "full layers": {
            "sliding_window": 16, "use_sliding_window": True, "max_window_layers": 0,
            "layer_types": ["full_attention"] * 2,
        },
        "windowed layers": {
            "sliding_window": 16, "use_sliding_window": True, "layer_types": ["full_attention", "sliding_attention"],
        },
        "windowed layers, switched off": {"sliding_window": 16, "layer_types": ["full_attention", "sliding_attention"]},
        "too few layers listed": {"layer_types": ["full_attention"]},
        "attention_bias true": {"attention_bias": True},
        "attention_bias false": {"attention_bias": False},
        "no kv heads": {"num_key_value_heads": ABSENT},
        "tied": {"tie_word_embeddings": True},
    },
}  # fmt: skip


def weights() -> dict[str, np.ndarray]:
    """Returns the largest tensors that a case may need, by the suffixes of their names."""
    rng = np.random.default_rng(24)
    shapes = {
        "embed_tokens.weight": (VOCAB, 32), "lm_head.weight": (VOCAB, 32), "q_proj.weight": (N * H, 32),
        "k_proj.weight": (N * H, 32), "v_proj.weight": (N * H, 32), "o_proj.weight": (32, N * H),
        "gate_proj.weight": (F, 32), "up_proj.weight": (F, 32), "down_proj.weight": (32, F),
        "q_proj.bias": (N * H,), "k_proj.bias": (N * H,), "v_proj.bias": (N * H,), "o_proj.bias": (32,),
        "gate_proj.bias": (F,), "up_proj.bias": (F,), "down_proj.bias": (32,),
        "input_layernorm.weight": (32,), "post_attention_layernorm.weight": (32,), "norm.weight": (32,),
    }  # fmt: skip
    drawn = {name: rng.standard_normal(shape) / math.sqrt(16) for name, shape in shapes.items()}
    return {name: (x * (3 if name[:2] in ("q_", "k_") else 1) + ("norm" in name)).astype(np.float32)
            for name, x in drawn.items()}  # fmt: skip


def logits_of(model: torch.nn.Module, drawn: dict[str, np.ndarray], ids: np.ndarray) -> np.ndarray:
    """Returns the logits of the last token; every parameter is a slice of the drawn ones."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            whole = drawn[".".join(name.split(".")[-2:])]
            parameter.copy_(torch.tensor(whole[tuple(slice(0, size) for size in parameter.shape)]))
        return model(torch.tensor(ids)).logits[0, -1].numpy()


def main() -> None:
    """Writes the file."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    drawn, cases, logits = weights(), {}, {}
    ids = np.random.default_rng(25).integers(0, VOCAB, (1, LENGTH))
    for model_type, variants in CASES.items():
        for name, changes in variants.items():
            config = {"model_type": model_type, **SIZES, **changes}
            config = {field: value for field, value in config.items() if value != ABSENT}
            name = f"{model_type}: {name}"
            cases[name] = {"config": json.loads(json.dumps(config))}
            try:
                loaded = AutoConfig.for_model(**json.loads(json.dumps(config)))
                # Attention by its formula: faster implementations accept only causal masks.
                model = AutoModelForCausalLM.from_config(loaded, attn_implementation="eager").double().eval()
                logits[name] = logits_of(model, drawn, ids)
            except Exception as error:
                cases[name]["error"] = type(error).__name__
                print(f"{name}: {type(error).__name__}: {str(error)[:100]}")
                continue
            cases[name]["shapes"] = {
                key.removeprefix("model."): list(x.shape)
                for key, x in model.named_parameters()
                if "layers.1." not in key
            }
    np.savez_compressed(OUT, cases=np.array(json.dumps(cases, sort_keys=True)), ids=ids,
                        **{f"weight {k}": x for k, x in drawn.items()},
                        **{f"logits {k}": x.astype(np.float32) for k, x in logits.items()})  # fmt: skip
    print(f"{len(cases)} cases, {OUT.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()

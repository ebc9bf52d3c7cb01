"""A random LLaMA with grouped queries, written in every format of a base."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from torch_files import write_torch_file

from aligner_jax.model.config import LlamaConfig

CONFIG = LlamaConfig(
    vocab_size=64, d_model=32, d_mlp=48, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=8, context_length=4096
)

_META_NAMES = {
    "model.embed_tokens": "tok_embeddings",
    "model.norm": "norm",
    "lm_head": "output",
    "model.layers": "layers",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
}

type Tensors = dict[str, np.ndarray]


def draw(config: LlamaConfig = CONFIG, seed: int = 0) -> Tensors:
    """Returns random float32 tensors under Hugging Face's names; norms near one keep logits at a usual scale."""
    random = np.random.default_rng(seed)
    d, f, h = config.d_model, config.d_mlp, config.head_dim
    nh, kh = config.num_heads * h, config.num_kv_heads * h
    matrices = {"self_attn.q_proj": (nh, d), "self_attn.k_proj": (kh, d), "self_attn.v_proj": (kh, d)}
    matrices |= {"self_attn.o_proj": (d, nh), "mlp.gate_proj": (f, d), "mlp.up_proj": (f, d), "mlp.down_proj": (d, f)}
    shapes = {"model.embed_tokens.weight": (config.vocab_size, d), "model.norm.weight": (d,)}
    if not config.tied_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, d)
    for layer in range(config.num_layers):
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in matrices.items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"model.layers.{layer}.{norm}.weight"] = (d,)
    drawn = {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    return {name: x / np.float32(np.sqrt(d)) if x.ndim == 2 else 1 + x / 10 for name, x in drawn.items()}


def write_hf(folder: Path, config: LlamaConfig, tensors: Tensors, files: int = 1) -> Path:
    """Writes a Hugging Face folder of one or of several safetensors."""
    folder.mkdir(parents=True)
    fields = {
        "model_type": "llama", "vocab_size": config.vocab_size, "hidden_size": config.d_model,
        "intermediate_size": config.d_mlp, "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads, "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim, "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.norm_eps, "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tied_embeddings,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(fields))
    if files == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    weight_map = {name: f"model-{1 + i % files:05}-of-{files:05}.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in set(weight_map.values()):
        save_file({name: tensors[name] for name in tensors if weight_map[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def meta_params(config: LlamaConfig) -> dict[str, object]:
    """Returns the fields of params.json, without those that LLaMA 2 omits."""
    return {
        "dim": config.d_model, "n_layers": config.num_layers, "n_heads": config.num_heads,
        "n_kv_heads": config.num_kv_heads, "multiple_of": 16, "norm_eps": config.norm_eps, "vocab_size": -1,
    }  # fmt: skip


def meta_parts(config: LlamaConfig, tensors: Tensors, parts: int = 1, embedding_axis: int = 1) -> list[Tensors]:
    """Returns the tensors of each file of a split model; q and k have the halves of a head interleaved."""
    by_part: list[Tensors] = [{} for _ in range(parts)]
    for name, tensor in tensors.items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            halves = tensor.reshape(-1, 2, config.head_dim // 2, config.d_model)
            tensor = halves.swapaxes(1, 2).reshape(tensor.shape)
        for old, new in _META_NAMES.items():
            name = name.replace(old, new)
        axis = embedding_axis if name.startswith("tok_emb") else int(name.endswith(("wo.weight", "w2.weight")))
        split = np.split(tensor, parts, axis) if tensor.ndim == 2 else [tensor] * parts
        for part, held in zip(by_part, split, strict=True):
            part[name] = held
    return by_part


def write_meta(folder: Path, params: dict[str, object], by_part: list[Tensors]) -> Path:
    """Writes a folder in Meta's format."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.json").write_text(json.dumps(params))
    for number, part in enumerate(by_part):
        write_torch_file(folder / f"consolidated.{number:02}.pth", part)
    return folder

"""Hugging Face folders: one file and several, tied and not, every model type and dtype."""

import json
import random
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save

from aligner_jax.weights.hf import load_hf
from scripts.damage.kinds import _safetensors, mutations
from scripts.damage.kinds.kind import Files, Kind, digest

_INDEX = "model.safetensors.index.json"
_SIZES = {
    "vocab_size": 12, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
}  # fmt: skip
_LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip


def _tensors(rng: np.random.Generator, dtype: type, *, tied: str = "", biased: bool = False) -> dict[str, np.ndarray]:
    shapes = {"model.embed_tokens.weight": (12, 8), "lm_head.weight": (12, 8), "model.norm.weight": (8,)}
    if tied:
        del shapes[tied]
    for layer in range(2):
        at = f"model.layers.{layer}."
        for name, shape in {"q": (8, 8), "k": (4, 8), "v": (4, 8), "o": (8, 8)}.items():
            shapes[f"{at}self_attn.{name}_proj.weight"] = shape
            if biased and name != "o":
                shapes[f"{at}self_attn.{name}_proj.bias"] = shape[:1]
        for name, shape in {"gate": (12, 8), "up": (12, 8), "down": (8, 12)}.items():
            shapes[f"{at}mlp.{name}_proj.weight"] = shape
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{at}{name}.weight"] = (8,)
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def _folder(tensors: dict[str, np.ndarray], files: int = 1, **fields: object) -> Files:
    made = {"config.json": json.dumps({"model_type": "llama", **_SIZES, **fields}).encode()}
    if files == 1:
        return {**made, "model.safetensors": save(tensors, {"format": "pt"})}
    names = [f"model-{number + 1:05}-of-{files:05}.safetensors" for number in range(files)]
    weight_map = {tensor: names[place % files] for place, tensor in enumerate(tensors)}
    made[_INDEX] = json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}).encode()
    return made | {name: save({t: tensors[t] for t in tensors if weight_map[t] == name}) for name in names}


def _samples() -> list[Files]:
    rng = np.random.default_rng(0)
    head, embedding = "lm_head.weight", "model.embed_tokens.weight"
    return [
        _folder(_tensors(rng, np.float32), rope_theta=500.0, rope_scaling=_LLAMA3),
        _folder(_tensors(rng, ml_dtypes.bfloat16, tied=head), tie_word_embeddings=True),
        _folder(_tensors(rng, np.float16, tied=embedding), tie_word_embeddings=True),
        _folder(_tensors(rng, np.float32), 3, model_type="mistral", sliding_window=None, head_dim=4),
        _folder(_tensors(rng, np.float32, tied=head, biased=True), 2, model_type="qwen2", tie_word_embeddings=True),
    ]


def _mutate(rng: random.Random, files: Files) -> Files:
    name = rng.choice(sorted(files))
    how = _safetensors.mutate if name.endswith(".safetensors") else mutations.of_json
    return {**files, name: how(rng, files[name])}


def _read(folder: Path) -> str:

    config, params = load_hf(folder)
    leaves = {name: np.asarray(x) for tree in (params, params.layers) for name, x in vars(tree).items() if x is not None
              and name != "layers"}  # fmt: skip
    assert all(np.isfinite(x).all() for x in leaves.values())
    numbers = [x for x in vars(config).values() if isinstance(x, int | float)]
    assert np.isfinite(np.array(numbers, np.float32)).all()
    return digest(config, *(part for name in sorted(leaves) for part in (name, leaves[name].shape, leaves[name])))


def _may_differ(sample: Files, damaged: Files) -> bool:
    """Returns True if the library reads other weights too: neither settings nor weights have a checksum."""
    if damaged["config.json"] != sample["config.json"]:
        return True
    read = [
        {name: _safetensors.tensors_of(content) for name, content in files.items() if name.endswith("safetensors")}
        for files in (sample, damaged)
    ]
    return None not in read[1].values() and read[0] != read[1]


KIND = Kind("hf", _samples, _mutate, _read, _may_differ)

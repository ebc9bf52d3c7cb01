"""Hugging Face PEFT's folders: LoRA and AdaptionPrompt, with and without their base."""

import json
import math
import random
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
from safetensors.numpy import save

from aligner_jax.model.config import LlamaConfig
from aligner_jax.peft.artifact import load_adapter
from scripts.damage.kinds import _safetensors, mutations
from scripts.damage.kinds.kind import Files, Kind, digest

_CONFIG, _TENSORS, _BESIDE = "adapter_config.json", "adapter_model.safetensors", "beside_its_base"
_PATTERNS = (
    ".*", ".*_proj", ".*\\.(q|v)_proj", "(", "(.*)*(.*)*x", "((a+)+)+!", "[a", "a{9999999}", "(?i)q_proj", "a**", "\\1",
    "(?:.*?(?:self_attn|mlp).*?(?:q_proj|v_proj).*?)", "^(?!.*head).*(q_proj|v_proj)$", "(" * 5000, "all-linear", "",
    ["q_proj", "v_proj", "c_attn"], ["q_proj"], ["lm_head", "q_proj", "v_proj"], [""], "lm_head",
    "model.layers.0.self_attn.q_proj",
)  # fmt: skip


class _Base(NamedTuple):
    config: LlamaConfig = LlamaConfig(12, 8, 12, 2, 2, 1, 4)
    fingerprint: str = ""


def _samples() -> list[Files]:
    rng = np.random.default_rng(0)

    def lora(dtype: type, **fields: object) -> Files:
        tensors = {}
        for layer in range(2):
            for name, out in (("q_proj", 8), ("v_proj", 4)):
                at = f"base_model.model.model.layers.{layer}.self_attn.{name}.lora_"
                tensors[f"{at}A.weight"] = rng.standard_normal((2, 8)).astype(dtype)
                tensors[f"{at}B.weight"] = rng.standard_normal((out, 2)).astype(dtype)
        config = {
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "lora_dropout": 0.1, "bias": "none",
            "target_modules": ["q_proj", "v_proj"], "use_rslora": False, "layers_to_transform": None,
            "fan_in_fan_out": False, "inference_mode": True, "modules_to_save": None, "init_lora_weights": True,
            "rank_pattern": {}, "alpha_pattern": {}, "base_model_name_or_path": "x", **fields,
        }  # fmt: skip
        return {_CONFIG: json.dumps(config).encode(), _TENSORS: save(tensors, {"format": "pt"}), _BESIDE: b""}

    prompts = {}
    for layer in range(2):
        at = f"base_model.model.model.layers.{layer}.self_attn.adaption_"
        prompts[f"{at}prompt"] = rng.standard_normal((1, 3, 8)).astype(np.float32)
        prompts[f"{at}gate"] = rng.standard_normal(1).astype(np.float32)
    config = {"peft_type": "ADAPTION_PROMPT", "adapter_len": 3, "adapter_layers": 2, "target_modules": "self_attn"}
    prompt = {_CONFIG: json.dumps(config).encode(), _TENSORS: save(prompts, {"format": "pt"})}
    return [
        lora(np.float32),
        lora(ml_dtypes.bfloat16, use_rslora=True, target_modules=".*\\.(q|v)_proj", layers_to_transform=[0, 1]),
        prompt,
        {**prompt, _BESIDE: b""},
    ]


def _mutate(rng: random.Random, files: Files) -> Files:
    change = rng.randrange(5)
    if change < 2:
        return {**files, _TENSORS: _safetensors.mutate(rng, files[_TENSORS])}
    if change == 2:
        config = json.loads(files[_CONFIG])
        config["target_modules"] = rng.choice(_PATTERNS)
        if isinstance(config["target_modules"], str) and rng.randrange(2):
            config["target_modules"] = mutations.of_bytes(rng, config["target_modules"].encode()).decode("latin-1")
        return {**files, _CONFIG: json.dumps(config).encode()}
    return {**files, _CONFIG: mutations.of_json(rng, files[_CONFIG])}


def _read(folder: Path) -> str:

    adapter = load_adapter(folder, _Base() if (folder / _BESIDE).exists() else None)
    arrays = {name: np.asarray(x) for name, x in adapter.trainable.items()}
    assert all(np.isfinite(x).all() and x.dtype == np.float32 for x in arrays.values())
    assert all(math.isfinite(x) for x in adapter.options.as_dict().values() if isinstance(x, int | float))
    return digest(adapter.method, adapter.options, *(part for name in sorted(arrays) for part in
                  (name, arrays[name].shape, arrays[name])))  # fmt: skip


def _may_differ(sample: Files, damaged: Files) -> bool:
    """Returns True if the library reads other weights too: neither settings nor weights have a checksum."""
    if sample[_CONFIG] != damaged[_CONFIG]:
        return True
    read = _safetensors.tensors_of(damaged[_TENSORS])
    return read is not None and read != _safetensors.tensors_of(sample[_TENSORS])


KIND = Kind("peft", _samples, _mutate, _read, _may_differ)

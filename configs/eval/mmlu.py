"""MMLU as lm-evaluation-harness asks it: the likeliest of four letters after five examples.

python -m aligner_jax.evaluate --config=configs/eval/mmlu.py --config.base.path=DIR --config.evaluation.mmlu=mmlu.zip \\
    --adapter=runs/llama7b_alpaca/adapter.safetensors
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "base": {"path": "meta-llama/Llama-2-7b-hf", "model": "llama2_7b"},
            # Tensor parallelism: gathering all weights for each token, as fsdp does, takes longer.
            "mesh": {"fsdp": 1, "tensor": -1, "topology": "v5e:2x4"},
            "evaluation": {"name": "harness", "tasks": ("mmlu",), "mmlu": "data/mmlu.zip", "num_fewshot": 5},
            "batch_size": 16,
        }
    )

"""Answers to Vicuna-bench's 80 questions as in the paper, for a judge to compare: temperature 0.7, 100 new tokens.

python -m aligner_jax.evaluate --config=configs/eval/vicuna.py --config.base.path=DIR \\
    --config.evaluation.path=question.jsonl --adapter=runs/llama7b_alpaca/adapter.safetensors
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "base": {"path": "meta-llama/Llama-2-7b-hf", "model": "llama2_7b"},
            # Tensor parallelism: gathering all weights for each token, as fsdp does, takes longer.
            "mesh": {"fsdp": 1, "tensor": -1, "topology": "v5e:2x4"},
            "evaluation": {"name": "vicuna", "path": "data/vicuna_bench/question.jsonl", "template": "alpaca"},
            "batch_size": 16,
        }
    )

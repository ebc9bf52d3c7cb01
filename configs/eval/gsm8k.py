"""GSM8K's 1,319 test problems in MetaMath's prompt, with "The answer is: " before the answer.

python -m aligner_jax.evaluate --config=configs/eval/gsm8k.py --config.base.path=DIR \\
    --config.evaluation.path=test.jsonl --adapter=runs/llama7b_metamath/adapter.safetensors
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "base": {"path": "meta-llama/Llama-2-7b-hf", "model": "llama2_7b"},
            # Tensor parallelism: gathering all weights for each token, as fsdp does, takes longer.
            "mesh": {"fsdp": 1, "tensor": -1, "topology": "v5e:2x4"},
            "evaluation": {"name": "gsm8k", "path": "data/gsm8k/test.jsonl", "protocol": "metamath"},
            "batch_size": 32,
        }
    )

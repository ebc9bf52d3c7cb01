"""MMLU as in the paper's table: without examples, the right choice written out.

python -m aligner_jax.evaluate --config=configs/eval/mmlu_paper.py --config.base.path=DIR \\
    --config.evaluation.path=mmlu.zip --adapter=runs/llama7b_alpaca/adapter.safetensors
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "base": {"path": "meta-llama/Llama-2-7b-hf", "model": "llama2_7b"},
            # Tensor parallelism: gathering all weights for each token, as fsdp does, takes longer.
            "mesh": {"fsdp": 1, "tensor": -1, "topology": "v5e:2x4"},
            "evaluation": {"name": "mmlu_generated", "path": "data/mmlu.zip"},
            "batch_size": 32,
        }
    )

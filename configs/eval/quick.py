"""Three subjects of MMLU, ten questions each, on a 135M model: a check of one minute.

python -m aligner_jax.evaluate --config=configs/eval/quick.py --config.evaluation.mmlu=mmlu.zip
python -m aligner_jax.evaluate --config=configs/eval/quick.py --config.evaluation.mmlu=mmlu.zip \\
    --adapter=runs/quickstart/adapter.safetensors
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "base": {"path": "models/SmolLM2-135M-Instruct.Q4_1.gguf", "model": "smollm2_135m"},
            "evaluation": {
                "name": "harness",
                "tasks": ("mmlu_anatomy", "mmlu_global_facts", "mmlu_virology"),
                "mmlu": "data/mmlu.zip",
                "num_fewshot": 0,
            },
            "limit": 10,
        }
    )

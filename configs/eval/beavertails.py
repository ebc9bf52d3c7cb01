"""Answers to BeaverTails-Evaluation, 700 questions in 14 categories of harm, for a judge.

    python -m aligner_jax.evaluate --config=configs/eval/beavertails.py --adapter=A.safetensors \
        --config.evaluation.path=beavertails_evaluation_700.json --out=runs/answers/A

Next comes configs/eval/safety.py. The questions are offensive, and the answers may be: nothing prints them.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "base": {"path": "models/SmolLM2-135M-Instruct.Q4_1.gguf"},
            "evaluation": {
                "name": "answers",
                "path": "data/beavertails_evaluation_700.json",
                "template": "auto",
                "temperature": 0.0,
                "max_new_tokens": 128,
            },
            "batch_size": 16,
        }
    )

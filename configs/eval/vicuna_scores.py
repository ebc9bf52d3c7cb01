"""Aligner-1 and -10 against LLaMA-Adapter and LoRA on Vicuna-bench, by the scores of a reward model.

    python -m aligner_jax.evaluate --config=configs/eval/vicuna_scores.py \
        --config.evaluation.responses.files='["vicuna80_responses_armorm.csv"]' \
        [--config.evaluation.scores.field=argilla-overall_quality]

The file holds the 80 responses of eight models that the paper's authors released, each with ArmoRM's attributes. The
table also gives the paper's rates, where GPT-4 judged. docs/judging.md explains the choice of column and the results.
"""

from ml_collections import ConfigDict

OTHERS = ("adapter", "loraR8")
ALIGNERS = ("aligner1", "aligner10")
PAIRS = [[f"{ours}_{size}", f"{other}_{size}"] for size in ("7B", "13B") for ours in ALIGNERS for other in OTHERS]

# Wins, losses and ties in the paper's table of Vicuna-bench, in the order of the pairs.
PAPER = [
    [26, 35, 19], [20, 26, 34], [28, 26, 26], [26, 25, 29],
    [22, 28, 30], [16, 31, 33], [27, 27, 26], [21, 28, 31],
]  # fmt: skip


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "evaluation": {
                "name": "pairwise",
                "by": "scores",
                "responses": {"files": ["data/vicuna80_responses_armorm.csv"], "model_field": "file_name"},
                "pairs": PAIRS,
                "scores": {"field": "ultrafeedback-overall_score", "margin": 0.0},
                "published": PAPER,
            },
        }
    )

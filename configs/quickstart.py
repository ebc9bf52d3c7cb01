"""Teaches a 135M model a house style on a laptop: every answer one JSON object with a topic and a sentence.

bash scripts/quickstart.sh                                                  # installs, finds the model, runs this
python -m aligner_jax.train --config=configs/quickstart.py                  # one token
python -m aligner_jax.train --config=configs/quickstart.py --config.adapter.num_tokens=10 --workdir=runs/ten_tokens
python -m aligner_jax.train --config=configs/quickstart.py:sums,7           # a named recipe (docs/recipes.md)
"""

from ml_collections import ConfigDict

from aligner_jax.runtime.recipes import with_recipe


def get_config(recipe: str = "") -> ConfigDict:
    config = ConfigDict(
        {
            "base": {"path": "models/SmolLM2-135M-Instruct.Q4_1.gguf", "model": "smollm2_135m"},
            "adapter": {"method": "aligner", "num_tokens": 1, "start_layer": 2},
            "data": {
                "path": "aligner_jax/data/quickstart/train.jsonl",
                "heldout_path": "aligner_jax/data/quickstart/heldout.jsonl",
                "template": "chat",
                "system": "",
                "sequence_length": 256,
                "batch_size": 1,
            },
            "optim": {"lr": 2e-2, "weight_decay": 0.02, "schedule": "cosine"},
            "mesh": {"topology": "v5e:2x2", "devices": 1},
            "steps": 56,
            "remat": "dots",
            "log_every": 5,
            "checkpoint": {"every": 14},
            "report": {"form": "json_answer", "samples": 3, "max_new_tokens": 40},
        }
    )
    return with_recipe(config, recipe) if recipe else config

"""configs/pku_dpo.py for two CPU cores: SmolLM2-135M, 60 steps of 4 rows of 256 tokens, each with whole pairs.

    python -m aligner_jax.train --config=configs/smollm2_pku_dpo.py --config.data.path=PKU_SAFERLHF_TRAIN

It begins with the Aligner of configs/smollm2_pku_sft.py, in runs/smollm2_pku_sft. A row holds both answers of a pair,
so pairs longer than 256 tokens in total are left out; the run reports how many. Because there are so few steps, the
rate is larger than the paper's, and the reference is not computed for all pairs beforehand.

PKU_SAFERLHF_TRAIN is explained in configs/pku_sft.py.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "base": {"path": "models/SmolLM2-135M-Instruct.Q4_1.gguf", "model": "smollm2_135m"},
            "adapter": {
                "method": "aligner",
                "num_tokens": 1,
                "start_layer": 2,
                "init_from": "runs/smollm2_pku_sft/adapter.safetensors",
            },
            "objective": {"name": "dpo", "beta": 0.1, "reference": "initial", "cache_reference": False},
            "data": {
                "path": "data/pku_saferlhf/train.jsonl",
                "format": "pku_saferlhf",
                "heldout_rows": 64,
                "template": "chat",
                "system": "",
                "sequence_length": 256,
                "batch_size": 4,
                "overlong": "drop",
            },
            "optim": {"lr": 1e-3, "weight_decay": 0.02, "schedule": "warmup_constant", "warmup_steps": 10},
            "mesh": {"topology": "v5e:2x2", "devices": 1},
            "steps": 60,
            "remat": "dots",
            "log_every": 5,
            "checkpoint": {"every": 20},
        }
    )

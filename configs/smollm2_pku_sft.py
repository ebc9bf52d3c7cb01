"""configs/pku_sft.py for two CPU cores: SmolLM2-135M, 60 steps of 4 packed rows of 256 tokens.

    python -m aligner_jax.train --config=configs/smollm2_pku_sft.py --config.data.path=PKU_SAFERLHF_TRAIN

Next comes configs/smollm2_pku_dpo.py. The two show that the stages work, not how much they can improve a model.

PKU_SAFERLHF_TRAIN is explained in configs/pku_sft.py.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "base": {"path": "models/SmolLM2-135M-Instruct.Q4_1.gguf", "model": "smollm2_135m"},
            "adapter": {"method": "aligner", "num_tokens": 1, "start_layer": 2},
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
            "optim": {"lr": 9e-3, "weight_decay": 0.02, "schedule": "warmup_constant", "warmup_steps": 10},
            "mesh": {"topology": "v5e:2x2", "devices": 1},
            "steps": 60,
            "remat": "dots",
            "log_every": 5,
            "checkpoint": {"every": 20},
        }
    )

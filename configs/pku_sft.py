"""Preferences, stage 1 of 2: fine-tunes an Aligner on the safer responses of PKU-SafeRLHF, on LLaMA-2 7B.

    python -m aligner_jax.train --config=configs/pku_sft.py \
        --config.base.path=DIR_OR_HUB_NAME --config.data.path=PKU_SAFERLHF_TRAIN

configs/pku_dpo.py then begins with runs/pku_sft/adapter.safetensors. The paper (arXiv 2312.05503) says of this stage
only that it trains on the safer responses first. All settings but the data are therefore those of its Alpaca recipe:
batches of 64, 9e-3, weight decay 0.02. 3 epochs of 80,000 responses are 3,750 steps; the warm-up is half an epoch, as
the authors intended.

PKU_SAFERLHF_TRAIN is a file of https://huggingface.co/datasets/PKU-Alignment/PKU-SafeRLHF or, where `datasets` is
installed, PKU-Alignment/PKU-SafeRLHF.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "base": {"path": "meta-llama/Llama-2-7b-hf", "model": "llama2_7b"},
            "adapter": {"method": "aligner", "num_tokens": 1, "start_layer": 2},
            "data": {
                "path": "data/pku_saferlhf/train.jsonl",
                "format": "pku_saferlhf",
                "heldout_rows": 2000,
                "template": "alpaca",
                "loss_on": "answers",
                "sequence_length": 256,
                "batch_size": 64,
                "packing": False,
                "overlong": "truncate",
            },
            "optim": {"lr": 9e-3, "weight_decay": 0.02, "schedule": "warmup_constant", "warmup_steps": 625},
            "mesh": {"fsdp": -1, "topology": "v5e:2x4"},
            "steps": 3_750,
            "remat": "auto",
            "log_every": 10,
            "eval_every": 500,
            "checkpoint": {"every": 100},
        }
    )

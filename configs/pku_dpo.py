"""Preferences, stage 2 of 2: the paper's DPO run on PKU-SafeRLHF, from the Aligner of configs/pku_sft.py.

    python -m aligner_jax.train --config=configs/pku_dpo.py --config.base.path=DIR_OR_HUB_NAME \
        --config.data.path=PKU_SAFERLHF_TRAIN --config.adapter.init_from=runs/pku_sft/adapter.safetensors

Policy and frozen reference both begin as that Aligner. 64 sequences a step are 32 pairs; 3 epochs of 160,000 sequences
are 7,500 steps. The rate is the one that ran: the authors intended a warm-up of half an epoch, 1,250 steps, to 1e-4,
but their code divides by 10,000, so it ends at 7.5e-5. For the intended rate, use
--config.optim.schedule=warmup_constant --config.optim.warmup_steps=1250.

PKU_SAFERLHF_TRAIN is a file of https://huggingface.co/datasets/PKU-Alignment/PKU-SafeRLHF or, where `datasets` is
installed, PKU-Alignment/PKU-SafeRLHF.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "base": {"path": "meta-llama/Llama-2-7b-hf", "model": "llama2_7b"},
            "adapter": {
                "method": "aligner",
                "num_tokens": 1,
                "start_layer": 2,
                "init_from": "runs/pku_sft/adapter.safetensors",
            },
            "objective": {"name": "dpo", "beta": 0.1, "label_smoothing": 0.0, "reference": "initial"},
            "data": {
                "path": "data/pku_saferlhf/train.jsonl",
                "format": "pku_saferlhf",
                "heldout_rows": 2000,
                "template": "alpaca",
                "sequence_length": 256,
                "batch_size": 64,
                "packing": False,
                "overlong": "truncate",
            },
            "optim": {"lr": 1e-4, "weight_decay": 0.02, "schedule": "paper_as_run", "warmup_steps": 10_000},
            "mesh": {"fsdp": -1, "topology": "v5e:2x4"},
            "steps": 7_500,
            "remat": "auto",
            "log_every": 10,
            "eval_every": 500,
            "checkpoint": {"every": 100},
        }
    )

"""The paper's Alpaca run on LLaMA-2 13B: Aligner with one token, 6,640 numbers, on sixteen v5e chips.

    python -m aligner_jax.train --config=configs/llama13b_alpaca.py \
        --config.base.path=DIR_OR_HUB_NAME --config.data.path=alpaca_data.json

All else is as in configs/llama7b_alpaca.py, which tells of the learning rate.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "base": {"path": "meta-llama/Llama-2-13b-hf", "model": "llama2_13b"},
            "adapter": {"method": "aligner", "num_tokens": 1, "start_layer": 2},
            "data": {
                "path": "data/alpaca_data.json",
                "heldout_rows": 2000,
                "template": "alpaca",
                "loss_on": "all",
                "sequence_length": 512,
                "batch_size": 64,
                "packing": False,
                "overlong": "truncate",
            },
            "optim": {"lr": 9e-3, "weight_decay": 0.02, "schedule": "paper_as_run", "warmup_steps": 12_500},
            "mesh": {"fsdp": -1, "topology": "v5e:4x4"},
            "steps": 6_250,
            "remat": "full",
            "log_every": 10,
            "eval_every": 500,
            "checkpoint": {"every": 100},
        }
    )

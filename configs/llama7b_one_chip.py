"""The paper's Alpaca run on a single v5e chip of 16 GiB, as Colab has one: LLaMA-2 7B in bfloat16, unquantized.

    python -m aligner_jax.train --config=configs/llama7b_one_chip.py \
        --config.base.path=DIR_OR_HUB_NAME --config.data.path=alpaca_data.json

The 64 rows of a step are taken eight at a time. The step is the one of configs/llama7b_alpaca.py but for rounding.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "base": {"path": "meta-llama/Llama-2-7b-hf", "model": "llama2_7b"},
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
            "optim": {
                "lr": 9e-3,
                "weight_decay": 0.02,
                "schedule": "paper_as_run",
                "warmup_steps": 12_500,
                "accumulate": 8,
            },
            "mesh": {"topology": "v5e:2x2", "devices": 1},
            "steps": 6_250,
            "remat": "full",
            "log_every": 10,
            "eval_every": 500,
            "checkpoint": {"every": 100},
        }
    )

"""The paper's Alpaca run: Aligner with one token on LLaMA-2 7B, 6,250 steps of 64 examples.

    python -m aligner_jax.train --config=configs/llama7b_alpaca.py \
        --config.base.path=DIR_OR_HUB_NAME --config.data.path=alpaca_data.json

Learning rate: the authors intended a linear warm-up over two epochs to 9e-3. Their code compares the count of optimizer
steps with 12,500, so the warm-up never ends, and the rate reaches 4.5e-3 at step 6,250. "paper_as_run" is the schedule
that ran; for the intended one, use --config.optim.schedule=warmup_constant --config.optim.warmup_steps=1562.

alpaca_data.json is at https://github.com/tatsu-lab/stanford_alpaca; docs/data.md has other data and where to get them.
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
            "optim": {"lr": 9e-3, "weight_decay": 0.02, "schedule": "paper_as_run", "warmup_steps": 12_500},
            "mesh": {"fsdp": -1, "topology": "v5e:2x4"},
            "steps": 6_250,
            "remat": "auto",
            "log_every": 10,
            "eval_every": 500,
            "checkpoint": {"every": 100},
        }
    )

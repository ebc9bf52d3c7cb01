"""An Aligner on Llama-3 8B, whose vocabulary is four times LLaMA-2's, on eight v5e chips.

    python -m aligner_jax.train --config=configs/llama3_8b_alpaca.py \
        --config.base.path=DIR_OR_HUB_NAME --config.data.path=alpaca_data.json

The recipe is that of configs/llama7b_alpaca.py; the paper has no run on this model.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "base": {"path": "meta-llama/Meta-Llama-3-8B", "model": "llama3_8b"},
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
            "remat": "full",
            "log_every": 10,
            "eval_every": 500,
            "checkpoint": {"every": 100},
        }
    )

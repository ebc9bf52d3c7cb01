"""An Aligner on LLaMA-2 70B: 32 v5e chips, over which the base is split in 32 parts of 4 GiB.

    bash scripts/run_tpu_pod.sh --name=NAME --zone=ZONE --type=v5litepod-32 --create -- \
        python -m aligner_jax.train --config=configs/llama70b_alpaca.py \
        --config.base.path=DIR --config.data.path=alpaca_data.json

The recipe is that of configs/llama7b_alpaca.py; the paper has no run of this size.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "base": {"path": "meta-llama/Llama-2-70b-hf", "model": "llama2_70b"},
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
            "mesh": {"fsdp": -1, "topology": "v5e:4x8"},
            "steps": 6_250,
            "remat": "full",
            "log_every": 10,
            "eval_every": 500,
            "checkpoint": {"every": 100},
        }
    )

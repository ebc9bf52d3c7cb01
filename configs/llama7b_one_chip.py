"""The paper's Alpaca run on a single v5e chip of 16 GiB, such as Colab's: LLaMA-2 7B in int8.

    python -m aligner_jax.train --config=configs/llama7b_one_chip.py \
        --config.base.path=DIR_OR_HUB_NAME --config.data.path=alpaca_data.json

The 64 rows of a step are accumulated eight at a time. Without quantization a step of eight rows fits too, but without
accumulation: --config.base.quantization=none --config.optim.accumulate=1 --config.data.batch_size=8.

alpaca_data.json is at https://github.com/tatsu-lab/stanford_alpaca; docs/data.md has other data and where to get them.
"""

from pathlib import Path

from ml_collections import ConfigDict

from aligner_jax.runtime.command import load_config


def get_config() -> ConfigDict:
    config = load_config(Path(__file__).with_name("llama7b_alpaca.py"))
    config.mesh = {"topology": "v5e:2x2", "devices": 1}
    config.base.quantization = "int8"
    config.optim.accumulate = 8
    return config

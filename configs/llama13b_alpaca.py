"""The paper's Alpaca run on LLaMA-2 13B: Aligner with one token, 6,640 numbers, on sixteen v5e chips.

    python -m aligner_jax.train --config=configs/llama13b_alpaca.py \
        --config.base.path=DIR_OR_HUB_NAME --config.data.path=alpaca_data.json

Everything else is as in configs/llama7b_alpaca.py, which explains the learning rate.

alpaca_data.json is at https://github.com/tatsu-lab/stanford_alpaca; docs/data.md has other data and where to get them.
"""

from pathlib import Path

from ml_collections import ConfigDict

from aligner_jax.runtime.command import load_config


def get_config() -> ConfigDict:
    config = load_config(Path(__file__).with_name("llama7b_alpaca.py"))
    config.base = {"path": "meta-llama/Llama-2-13b-hf", "model": "llama2_13b"}
    config.mesh.topology = "v5e:4x4"
    return config

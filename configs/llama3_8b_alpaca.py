"""An Aligner on Llama-3 8B, whose vocabulary is four times LLaMA-2's, on eight v5e chips.

    python -m aligner_jax.train --config=configs/llama3_8b_alpaca.py \
        --config.base.path=DIR_OR_HUB_NAME --config.data.path=alpaca_data.json

The recipe is that of configs/llama7b_alpaca.py; the paper has no run on this model.

alpaca_data.json is at https://github.com/tatsu-lab/stanford_alpaca; docs/data.md has other data and where to get them.
"""

from pathlib import Path

from ml_collections import ConfigDict

from aligner_jax.runtime.command import load_config


def get_config() -> ConfigDict:
    config = load_config(Path(__file__).with_name("llama7b_alpaca.py"))
    config.base = {"path": "meta-llama/Meta-Llama-3-8B", "model": "llama3_8b"}
    return config

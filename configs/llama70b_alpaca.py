"""An Aligner on LLaMA-2 70B: the base is sharded over 32 v5e chips, 4 GiB on each.

    bash scripts/run_tpu_pod.sh --name=NAME --zone=ZONE --type=v5litepod-32 --create -- \
        python -m aligner_jax.train --config=configs/llama70b_alpaca.py --config.base.path=/mount/llama-2-70b \
        --config.data.path=/mount/alpaca_data.json --workdir=/mount/run

The recipe is that of configs/llama7b_alpaca.py; the paper has no run of this size.

alpaca_data.json is at https://github.com/tatsu-lab/stanford_alpaca; docs/data.md has other data and where to get them.
"""

from pathlib import Path

from ml_collections import ConfigDict

from aligner_jax.runtime.command import load_config


def get_config() -> ConfigDict:
    config = load_config(Path(__file__).with_name("llama7b_alpaca.py"))
    config.base = {"path": "meta-llama/Llama-2-70b-hf", "model": "llama2_70b"}
    config.mesh.topology = "v5e:4x8"
    return config

"""The paper's baselines on LLaMA-2 7B: LoRA or LLaMA-Adapter, on Alpaca or MetaMathQA.

    python -m aligner_jax.train --config=configs/llama7b_baselines.py:lora \
        --config.base.path=DIR_OR_HUB_NAME --config.data.path=alpaca_data.json
    python -m aligner_jax.train --config=configs/llama7b_baselines.py:llama_adapter,metamath \
        --config.base.path=DIR_OR_HUB_NAME --config.data.path=MetaMathQA-395K.json

The part after the colon is "lora" (the default) or "llama_adapter", optionally followed by ",metamath". The paper
(arXiv 2312.05503) gives LoRA rank 8, α 16, dropout 0.05, a rate of 3e-4 and 5 epochs of batches of 64; LLaMA-Adapter
has Aligner's settings. All other settings, and the number of epochs of MetaMathQA, come from
configs/llama7b_alpaca.py and configs/llama7b_metamath.py. LoRA's rate is constant; LLaMA-Adapter's has the warm-up that
the authors intended.

alpaca_data.json is at https://github.com/tatsu-lab/stanford_alpaca; MetaMathQA-395K.json at
https://huggingface.co/datasets/meta-math/MetaMathQA; docs/data.md has others.
"""

from pathlib import Path

from ml_collections import ConfigDict

from aligner_jax.runtime.command import load_config

METHODS = {
    "lora": {"method": "lora", "rank": 8, "alpha": 16, "dropout": 0.05},
    "llama_adapter": {"method": "llama_adapter", "num_tokens": 10, "start_layer": 2},
}


def get_config(what: str = "lora") -> ConfigDict:
    method, _, task = what.partition(",")
    if method not in METHODS or task not in ("", "metamath"):
        raise ValueError(f"{what!r} is not one of {', '.join(METHODS)}, perhaps with ,metamath")
    config = load_config(Path(__file__).with_name(f"llama7b_{task or 'alpaca'}.py"))
    config.adapter = METHODS[method]
    if method == "lora":
        config.optim.update(lr=3e-4, schedule="constant", warmup_steps=0)
        if not task:
            config.steps = 3_906
    elif not task:
        config.optim.update(schedule="warmup_constant", warmup_steps=1_562)
    return config

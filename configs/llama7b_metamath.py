"""The paper's reasoning runs: Aligners of 1 to 300 tokens on MetaMathQA, LLaMA-2 7B.

    python -m aligner_jax.train --config=configs/llama7b_metamath.py:100 \
        --config.base.path=DIR_OR_HUB_NAME --config.data.path=MetaMathQA-395K.json

The part after the colon is the number of tokens, 1 by default. The paper (arXiv 2312.05503) gives results for 1, 10,
100 and 300 tokens, and no recipe but the one for Alpaca, which is used here: 3 epochs of 395,000 examples are 18,516
steps of 64. The rate rises over half an epoch, as the authors intended there, and then stays constant.

MetaMathQA-395K.json is at https://huggingface.co/datasets/meta-math/MetaMathQA; where `datasets` is installed,
--config.data.path=meta-math/MetaMathQA reads it from the hub.
"""

from pathlib import Path

from ml_collections import ConfigDict

from aligner_jax.runtime.command import load_config


def get_config(num_tokens: str = "1") -> ConfigDict:
    config = load_config(Path(__file__).with_name("llama7b_alpaca.py"))
    config.adapter.num_tokens = int(num_tokens)
    config.data.update(path="data/MetaMathQA-395K.json", format="metamath", loss_on="answers")
    config.optim.update(schedule="warmup_constant", warmup_steps=3_086)
    config.update(steps=18_516, eval_every=1000, checkpoint={"every": 200})
    return config

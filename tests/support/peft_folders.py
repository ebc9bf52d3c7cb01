"""PEFT's golden folders and their models."""

import functools

import jax
import numpy as np
from places import GOLDENS

from aligner_jax.model.config import LlamaConfig
from aligner_jax.model.params import Params
from aligner_jax.peft import Adapter
from aligner_jax.weights.hf import load_hf

CASES = {"lora": "wide_head", "rslora": "llama3", "adaption_prompt": "llama3"}


@functools.cache
def model(name: str) -> tuple[LlamaConfig, Params]:
    return load_hf(GOLDENS / "models" / name)


def assert_same(ours: Adapter, theirs: Adapter) -> None:
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for name, leaf in theirs.trainable.items():
        np.testing.assert_array_equal(ours.trainable[name], leaf)

"""A base that is known by its fingerprint alone; an adapter's file and a bank of it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from adapter_files import NamedBase

from aligner_jax.model.config import LlamaConfig
from aligner_jax.peft import Adapter, init_adapter
from aligner_jax.peft.artifact import save_adapter
from aligner_jax.peft.bank import Bank


@pytest.fixture
def base(config: LlamaConfig) -> NamedBase:
    return NamedBase(config)


@pytest.fixture
def saved(tmp_path: Path, trained_adapter, base: NamedBase) -> Path:
    path = tmp_path / "adapter.safetensors"
    save_adapter(trained_adapter(3), path, base)
    return path


@pytest.fixture
def bank(tmp_path: Path, base: NamedBase):
    with Bank.open(tmp_path / "bank", base, create=True) as opened:
        yield opened


@pytest.fixture
def filled(config: LlamaConfig) -> Callable[[float], Adapter]:
    """Returns an Aligner whose numbers are all the same."""
    fresh = init_adapter("aligner", config, start_layer=1)

    def make(value: float) -> Adapter:
        return fresh.replace(trainable={k: np.full(x.shape, value, np.float32) for k, x in fresh.trainable.items()})

    return make

"""A base that is known by its fingerprint alone, and an adapter's file of it."""

from pathlib import Path

import pytest
from adapter_files import NamedBase

from aligner_jax.model.config import LlamaConfig
from aligner_jax.peft.artifact import save_adapter


@pytest.fixture
def base(config: LlamaConfig) -> NamedBase:
    return NamedBase(config)


@pytest.fixture
def saved(tmp_path: Path, trained_adapter, base: NamedBase) -> Path:
    path = tmp_path / "adapter.safetensors"
    save_adapter(trained_adapter(3), path, base)
    return path

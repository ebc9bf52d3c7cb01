"""A tiny base, and a folder of adapters for it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import running_server

from aligner_jax.peft import Adapter, init_adapter
from aligner_jax.peft.artifact import save_adapter
from aligner_jax.weights.base import Base


@pytest.fixture(scope="session")
def base(tiny_subject) -> Base:
    return tiny_subject().base


@pytest.fixture(scope="session")
def adapters(base: Base) -> dict[str, Adapter]:
    """Adapters that change the answers much."""
    rng = np.random.default_rng(5)

    def drawn(method: str, **options) -> Adapter:
        adapter = init_adapter(method, base.config, **options)
        arrays = {name: rng.normal(size=x.shape).astype(np.float32) for name, x in adapter.trainable.items()}
        return adapter.replace(trainable=arrays)

    return {
        "A": drawn("aligner", num_tokens=1),
        "B": drawn("aligner", num_tokens=3, start_layer=1),
        "L": drawn("lora", rank=2),
    }


@pytest.fixture(scope="session")
def write_adapters(base: Base, adapters: dict[str, Adapter]) -> Callable[[Path], Path]:
    """Writes the adapters into a new folder; the prompt format of A is Alpaca's."""

    def write(folder: Path) -> Path:
        folder.mkdir()
        for name, adapter in adapters.items():
            recorded = {"template": "alpaca", "system": None} if name == "A" else None
            save_adapter(adapter, folder / f"{name}.safetensors", base, prompt_format=recorded)
        return folder

    return write


@pytest.fixture(scope="module")
def server(base: Base, write_adapters, tmp_path_factory: pytest.TempPathFactory) -> Iterator[running_server.Running]:
    folder = write_adapters(tmp_path_factory.mktemp("serving") / "adapters")
    with running_server.running(base, folder) as running:
        yield running


@pytest.fixture
def client(server: running_server.Running):
    with server.client() as client:
        yield client

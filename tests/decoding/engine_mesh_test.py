"""The engine on eight devices: the tokens of one device, and no program that compiles after the warm-up."""

import json
import sys

import jax
import many_devices
import numpy as np
import pytest

from aligner_jax.decoding.choose import Sampling
from aligner_jax.decoding.engine import Engine
from aligner_jax.decoding.engine_options import EngineOptions
from aligner_jax.decoding.request import Request
from aligner_jax.model.config import LlamaConfig
from aligner_jax.model.llama import Params, init_params
from aligner_jax.peft import Adapter, init_adapter
from aligner_jax.peft.row_adapters import Capacity
from aligner_jax.peft.stored import StoredAdapter
from aligner_jax.runtime import sharding

MODEL = LlamaConfig(
    vocab_size=40, d_model=32, d_mlp=48, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=8, context_length=64
)
MESHES = {"data 2, fsdp 2, tensor 2": (2, 2, 2)}
PROMPTS = [[3, 1, 4], [1, 5, 9, 2, 6], [5, 8], [9] * 20, [7] * 40, [2, 3]]
METHODS = [("aligner", {"num_tokens": 1}), ("aligner", {"num_tokens": 3}), ("lora", {"rank": 2})]
OPTIONS = EngineOptions(
    rows=4, slots=64, longest_part=16, alternatives=2, has_penalty=True, places=4,
    capacity=Capacity(tokens=4, rank=2, factors=("q_ldnh", "v_ldkh")),
)  # fmt: skip


def random_adapter(method: str, options: dict) -> Adapter:
    adapter = init_adapter(method, MODEL, **options)
    chance = np.random.default_rng(len(method) + options.get("num_tokens", 0))
    return adapter.replace(
        trainable={
            name: chance.normal(size=x.shape, scale=0.5).astype(np.float32) for name, x in adapter.trainable.items()
        }
    )


def served(params: Params) -> dict[str, list]:
    """Returns the tokens of every request, and the programs that were compiled after the warm-up."""
    kept = [StoredAdapter.of(random_adapter(*method), index) for index, method in enumerate(METHODS)]
    engine = Engine(params, MODEL, OPTIONS)
    engine.warm_up([(each.method, each.options) for each in kept])
    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name) if "backend_compile" in name else None
    )
    tokens: list[list[int]] = [[] for _ in PROMPTS]
    requests = [
        Request(ids, 6, Sampling(0.5 * (i % 2)), ((kept[i % 3], 1.0),), draw=i, logprobs=True)
        for i, ids in enumerate(PROMPTS)
    ]
    for new in engine.run(requests):
        tokens[new.request].append(new.token)
    return {"tokens": tokens, "compiled": list(compiled)}


def on_all_meshes() -> dict[str, dict[str, list]]:
    params = init_params(MODEL, 0)
    found = {"one device": served(params)}
    for name, (data, fsdp, tensor) in MESHES.items():
        mesh = sharding.make_mesh(data=data, fsdp=fsdp, tensor=tensor, devices=jax.devices()[: data * fsdp * tensor])
        with sharding.use(mesh):
            found[name] = served(jax.device_put(params, sharding.param_shardings(MODEL, mesh, sharding.RULES)))
    return found


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, list]]:
    child = many_devices.run(
        [sys.executable, __file__], 8
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout)


@pytest.mark.parametrize("mesh", MESHES)
def test_a_mesh_gives_the_tokens_of_one_device(mesh: str, found):
    assert found[mesh]["tokens"] == found["one device"]["tokens"]
    assert all(len(tokens) == 6 for tokens in found[mesh]["tokens"])


@pytest.mark.parametrize("mesh", ["one device", *MESHES])
def test_programs_take_each_others_results(mesh: str, found):
    assert found[mesh]["compiled"] == []


if __name__ == "__main__":
    print(json.dumps(on_all_meshes()))

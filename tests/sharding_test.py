"""A step split over eight devices, which a process of its own has, is the step of one device."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from aligner_jax.errors import InputError
from aligner_jax.model.config import LlamaConfig, llama_config
from aligner_jax.model.llama import init_params
from aligner_jax.objectives.step import init_state, make_step
from aligner_jax.peft import init_adapter
from aligner_jax.runtime import sharding

CONFIG = LlamaConfig(
    vocab_size=64, d_model=64, d_mlp=96, num_layers=3, num_heads=2, num_kv_heads=1, head_dim=64, context_length=128
)
ROWS, LENGTH = 8, 128
DEVICES = 8
CASES = [(1, 1), (10, 2), (20, 8)]


def differences(num_tokens: int, data: int) -> dict[str, float]:
    """Between a step on a mesh and on one device: of the loss and of each gradient, relative to its largest number."""
    draw = np.random.default_rng(0)
    params = init_params(CONFIG, dtype="float32")
    adapter = init_adapter("aligner", CONFIG, num_tokens=num_tokens, start_layer=1)
    gates = draw.standard_normal(adapter.trainable["gates_ln"].shape)
    adapter = adapter.replace(trainable={**adapter.trainable, "gates_ln": jnp.asarray(gates, jnp.float32)})
    # From one target in the first rows to many in the last, so that an average of averages is not the average.
    mask = np.arange(LENGTH)[None] < np.arange(2, 2 + 15 * ROWS, 15)[:, None]
    batch = {
        "tokens_bt": draw.integers(0, 64, (ROWS, LENGTH)).astype(np.int32),
        "segment_ids_bt": np.repeat([[1, 2]], LENGTH // 2, 1).repeat(ROWS, 0).astype(np.int32),
        "positions_bt": np.tile(np.arange(LENGTH // 2), (ROWS, 2)).astype(np.int32),
        "loss_mask_bt": mask,
    }
    optimizer = optax.trace(decay=0.0)
    step = jax.jit(make_step(adapter, optimizer, config=CONFIG, remat="full"))
    state, alone = step(init_state(adapter, optimizer), params, batch)
    mesh = sharding.make_mesh(data=data)
    with sharding.use(mesh):
        on_mesh = jax.device_put(init_state(adapter, optimizer), sharding.replicated(mesh))
        split_params = jax.device_put(params, sharding.param_shardings(CONFIG, mesh))
        split_batch = jax.device_put(batch, sharding.batch_sharding(mesh))
        split_step = jax.jit(make_step(adapter, optimizer, config=CONFIG, remat="full"))
        split_state, split = split_step(on_mesh, split_params, split_batch)
    found = {"loss": abs(float(split.loss - alone.loss)) / float(alone.loss)}
    for name, gradient in state.optimizer.trace.items():
        difference = jnp.max(jnp.abs(np.asarray(split_state.optimizer.trace[name]) - gradient))
        found[name] = float(difference / jnp.max(jnp.abs(gradient)))
    return found


@pytest.mark.parametrize(("num_tokens", "data"), CASES)
def test_a_step_split_over_a_mesh_is_the_step_of_one_device(found_by_child, num_tokens: int, data: int):
    differences = found_by_child[f"{num_tokens} {data}"]
    assert differences.keys() == {"loss", "tokens_pd", "gates_ln"}
    assert {name: d for name, d in differences.items() if not d < 1e-5} == {}


@pytest.fixture(scope="module")
def found_by_child() -> dict[str, dict[str, float]]:
    flags = f"--xla_force_host_platform_device_count={DEVICES}"
    paths = {"PYTHONPATH": str(Path(__file__).parents[1])}
    child = subprocess.run(
        [sys.executable, __file__], env={**os.environ, **paths, "XLA_FLAGS": flags}, capture_output=True, text=True
    )
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout)


def test_parameters_are_split_over_fsdp_and_norms_are_not():
    mesh = jax.sharding.AbstractMesh((2, 4), ("data", "fsdp"))
    shardings = sharding.param_shardings(llama_config("llama2_7b"), mesh)
    assert shardings.embed_vd.spec == PartitionSpec(None, "fsdp")
    assert shardings.layers.q_ldnh.spec == PartitionSpec(None, "fsdp", None, None)
    assert shardings.layers.down_lfd.spec == PartitionSpec(None, None, "fsdp")
    assert shardings.norm_d.spec == PartitionSpec(None)
    assert sharding.batch_sharding(mesh).spec == PartitionSpec(("data", "fsdp"))


@pytest.mark.parametrize(
    ("axes", "shape"), [({}, (1, 1)), ({"data": 1, "fsdp": 1}, (1, 1)), ({"data": -1, "fsdp": 1}, (1, 1))]
)
def test_a_mesh_of_all_devices(axes: dict, shape: tuple):
    assert sharding.make_mesh(**axes).devices.shape == shape


@pytest.mark.parametrize(
    "axes", [{"data": 2}, {"data": 1, "fsdp": 3}, {"data": 0, "fsdp": -1}, {"data": -1, "fsdp": -1}]
)
def test_a_mesh_that_does_not_fit_is_refused(axes: dict):
    with pytest.raises(InputError, match="does not fit 1 devices"):
        sharding.make_mesh(**axes)


def test_parameters_that_a_mesh_does_not_divide_are_named():
    mesh = jax.sharding.AbstractMesh((1, 5), ("data", "fsdp"))
    with pytest.raises(InputError, match="does not divide a parameter with axes vocab 64, embed 64"):
        sharding.param_shardings(CONFIG, mesh)


if __name__ == "__main__":
    assert jax.device_count() == DEVICES
    jax.config.update("jax_disable_most_optimizations", True)
    print(json.dumps({f"{num_tokens} {data}": differences(num_tokens, data) for num_tokens, data in CASES}))
